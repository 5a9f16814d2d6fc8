"""Is a gradient right? For functions on Tensors, and for plain functions on ndarrays with a vjp of one's own.

    from minilora.testing import check_vjp, gradcheck

    gradcheck(lambda x, w: (x @ w).sum(), x, w)
    check_vjp(np.tanh, lambda g, x: g * (1 - np.tanh(x) ** 2), x)

Both return None, or raise an AssertionError that says which input, which element, both numbers and how far they
may differ. They need NumPy only. How a gradient is judged is in ``differences``, how far numbers may be off in
``tolerance``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, no_grad, tensor
from minilora.errors import ConfigError
from minilora.testing.claims import claims
from minilora.testing.differences import Comparison
from minilora.testing.moves import directions, together
from minilora.testing.precision import precision_of
from minilora.testing.slopes import Neighbourhood
from minilora.testing.tolerance import DOUBLE, SINGLE

Array = NDArray[Any]
SCALES = (1.0, 1.0, 1e-9)  # of the random cotangents: two, and one that a rule which is not linear would lose


def gradcheck(f: Callable[..., Any], *inputs: Any, rtol: float | None = None, atol: float = 0.0, seed: int = 0) -> None:
    """Fail unless backward gives the gradient of ``f`` with respect to every real input.

    f       takes and returns Tensors (one, or a tuple); what should stay fixed belongs inside it
    inputs  ndarrays or Tensors, float32 or float64; integer and boolean arrays are handed on as they are
    rtol    what the gradient may be off by, relative to the sum of its absolute terms (default: 1.5e-8 in
            float64, 3.5e-4 in float32)
    atol    what it may be off by in any case; 0 unless you know how small a slope may be ignored

    AssertionError where the gradient is wrong, and also where no verdict is possible. ConfigError where no
    input is real.
    """
    arrays = [x.data if isinstance(x, Tensor) else np.asarray(x) for x in inputs]

    def forward(*xs: Any) -> Any:
        with no_grad():
            return _many(f(*(tensor(x) if x.dtype.kind in "fc" else x for x in xs)), unwrap=True)

    def pull(xs: Sequence[Any], grads: Sequence[Array]) -> Any:
        leaves = [tensor(x, requires_grad=x.dtype.kind == "f") if x.dtype.kind == "f" else x for x in xs]
        for k, grad in enumerate(grads):  # a backward consumes the tape, so each output has its own
            outs = _many(f(*leaves))
            if isinstance(outs[k], Tensor) and outs[k].requires_grad:
                outs[k].backward(grad)
        return tuple(_arrived(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)

    with no_grad():
        outs = _many(f(*(tensor(x) if x.dtype.kind == "f" else x for x in arrays)))
    for k, out in enumerate(outs):
        if not isinstance(out, Tensor):
            raise AssertionError(
                f"gradcheck: output {k} is {type(out).__name__}, expected a Tensor\n"
                "  something in the function takes .data, or calls NumPy on a Tensor, which cuts the graph"
            )
    _check("gradcheck", "backward", forward, pull, arrays, _names(f, 0, len(arrays)), rtol, atol, seed)


def check_vjp(
    f: Callable[..., Any], vjp: Callable[..., Any], *arrays: Any,
    rtol: float | None = None, atol: float = 0.0, seed: int = 0,
) -> None:  # fmt: skip
    """Fail unless ``vjp`` is the vector–Jacobian product of ``f`` at ``arrays``.

    f       f(*arrays) -> an array, or a tuple of arrays
    vjp     vjp(g, *arrays) -> one gradient for each array, None for integer and boolean ones; a single array where
            there is one input. g is shaped like f's output: a tuple where f returns one
    arrays  float32 or float64 for what is differentiated

    The other arguments, and the errors, are those of ``gradcheck``.
    """
    inputs = [np.asarray(a) for a in arrays]
    single = not isinstance(f(*(a.copy() for a in inputs)), tuple | list)

    def forward(*xs: Any) -> Any:
        return _many(f(*xs))

    def pull(xs: Sequence[Any], grads: Sequence[Array]) -> Any:
        parts = vjp(grads[0] if single else tuple(grads), *xs)
        if len(inputs) == 1 and not isinstance(parts, tuple | list):
            return (parts,)
        return parts

    _check("check_vjp", "vjp", forward, pull, inputs, _names(f, 0, len(inputs)), rtol, atol, seed)


def _check(
    who: str, named: str, forward: Callable[..., Any], pull: Callable[..., Any], arrays: Sequence[Array],
    names: Sequence[str], rtol: float | None, atol: float, seed: int,
) -> None:  # fmt: skip
    real = _real(who, arrays, names)
    rng = np.random.default_rng(seed)
    outs = _outputs(who, forward, arrays, names)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # steps may leave the domain; those are left out
        double = [a.astype(np.float64) if i in real else a for i, a in enumerate(arrays)]
        precision = precision_of(forward, double)
        points = double if precision is DOUBLE else arrays
        rounded = precision is SINGLE or any(arrays[i].dtype == np.float32 for i in real)
        own = SINGLE if rounded else DOUBLE
        cotangents = [[np.asarray(s * rng.standard_normal(o.shape), o.dtype) for o in outs] for s in SCALES]
        gradients = [_gradients(who, named, pull, arrays, grads, names) for grads in cotangents]

        def pulled(xs: Sequence[Any], grads: Sequence[Array]) -> Sequence[Array | None]:
            return [np.asarray(p) if i in real else None for i, p in enumerate(pull(xs, grads))]

        claimed = claims(pulled, arrays, cotangents, gradients, rng, own)
        near = Neighbourhood(forward, points, cotangents, rng, precision)
        comparison = Comparison(near, claimed, own.rtol if rtol is None else rtol, atol, named)
        for i in real:
            found = list(comparison.findings(directions(points[i], i, rng)))
            if found:
                raise AssertionError(_report(f"{who}: the gradient for {names[i]}", found, arrays[i], own.name))
        found = list(comparison.findings(together(points, real, rng)))
        if found:
            raise AssertionError(_report(f"{who}: the gradient", found, None, own.name))


def _real(who: str, arrays: Sequence[Array], names: Sequence[str]) -> list[int]:
    """The positions of the inputs that have a gradient."""
    for a, name in zip(arrays, names, strict=True):
        if a.dtype.kind not in "iub" and a.dtype not in (np.float32, np.float64):
            raise ConfigError(f"{who}: {name} has dtype {a.dtype}, wanted float32 or float64, or integers held fixed")
        if a.dtype.kind == "f" and not np.isfinite(a).all():
            raise AssertionError(f"{who}: {name} is not finite{_first(~np.isfinite(a), a)}; there is no slope there")
    real = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    if not real:
        raise ConfigError(f"{who}: no input is real, so there is no gradient to check; convert to float64")
    return real


def _outputs(who: str, forward: Callable[..., Any], arrays: Sequence[Array], names: Sequence[str]) -> list[Array]:
    """What the function gives, after seeing that it gives it twice, writes no input and returns finite numbers."""
    given = [a.copy() for a in arrays]
    outs = [np.array(o) for o in forward(*given)]
    _assert_unwritten(who, "function", arrays, given, names)
    again = [np.asarray(o) for o in forward(*given)]
    for k, out in enumerate(outs):
        if out.dtype.kind != "f":
            raise AssertionError(f"{who}: output {k} has dtype {out.dtype}, expected real numbers")
        if not np.isfinite(out).all():
            raise AssertionError(f"{who}: output {k} is not finite{_first(~np.isfinite(out), out)}")
        if len(outs) != len(again) or not np.array_equal(out, again[k]):
            raise AssertionError(
                f"{who}: the function is not deterministic: two calls give different output {k}\n"
                "  give it a seeded generator that starts anew at each call"
            )
    return outs


def _gradients(
    who: str,
    named: str,
    pull: Callable[..., Any],
    arrays: Sequence[Array],
    grads: Sequence[Array],
    names: Sequence[str],
) -> list[Array | None]:
    """What the vjp gives for one cotangent, after seeing that it is of the right form and the inputs are untouched."""
    given, handed = [a.copy() for a in arrays], [g.copy() for g in grads]
    parts = pull(given, handed)
    if not isinstance(parts, tuple | list):
        raise AssertionError(
            f"{who}: the {named} returned {type(parts).__name__}, expected a tuple of {len(arrays)} gradients"
        )
    if len(parts) != len(arrays):
        raise AssertionError(f"{who}: the {named} returned {len(parts)} gradients for {len(arrays)} inputs")
    parts = [None if p is None else np.array(p) for p in parts]
    for a, part, name in zip(arrays, parts, names, strict=True):
        _assert_form(who, named, a, part, name)
    _assert_unwritten(who, named, (*arrays, *grads), (*given, *handed), (*names, *("cotangent" for _ in grads)))
    for part, other, name in zip(parts, pull(given, handed), names, strict=True):
        if part is not None and not np.array_equal(part, np.asarray(other)):
            raise AssertionError(
                f"{who}: the {named} is not deterministic: two calls give different gradients for {name}"
            )
    return parts


def _assert_form(who: str, named: str, a: Array, part: Array | None, name: str) -> None:
    if a.dtype.kind != "f":
        if part is not None:
            raise AssertionError(
                f"{who}: the {named} returned a gradient for {name}, which is {a.dtype}; expected None"
            )
        return
    if part is None:
        raise AssertionError(f"{who}: the gradient for {name} is None, expected an array of shape {a.shape}")
    if part.shape != a.shape:
        raise AssertionError(f"{who}: the gradient for {name} has shape {part.shape}, the input has {a.shape}")
    if part.dtype != a.dtype:
        raise AssertionError(f"{who}: the gradient for {name} is {part.dtype}, the input is {a.dtype}")
    if not np.isfinite(part).all():
        raise AssertionError(f"{who}: the gradient for {name} is not finite{_first(~np.isfinite(part), part)}")


def _assert_unwritten(
    who: str, writer: str, before: Sequence[Array], after: Sequence[Array], names: Sequence[str]
) -> None:
    for kept, given, name in zip(before, after, names, strict=True):
        if not np.array_equal(kept, given):
            raise AssertionError(f"{who}: the {writer} writes its {name}; let it work on a copy")


def _report(what: str, found: Sequence[Any], array: Array | None, dtype: str) -> str:
    """One message from all that was found of one input: the first that is wrong, else the first of any kind."""
    first = next((f for f in found if f.kind == "wrong"), found[0])
    same = sum(f.kind == first.kind for f in found)
    count = "" if array is None or len(found) == 1 else f", and so in {same - 1} other places" if same > 1 else ""
    shape = "" if array is None else f", {array.dtype} {array.shape},"
    verdict = {"wrong": "is wrong", "not finite": "cannot be compared"}.get(
        first.kind, f"cannot be judged ({first.kind})"
    )
    advice = "" if first.kind == "wrong" else (
        "\n  no verdict is a failure: move the point, or return more outputs before they are summed, or say with atol "
        "how small a slope may be ignored"
    )  # fmt: skip
    return f"{what}{shape} {verdict} {first.label}{count}; judged as {dtype}\n{first.text}{advice}"


def _first(bad: Array, values: Array) -> str:
    at = np.unravel_index(int(np.argmax(bad)), bad.shape) if bad.ndim else ()
    return f": {values[at]} at {[int(i) for i in at]}"


def _names(f: Callable[..., Any], skip: int, count: int) -> list[str]:
    """How messages call the inputs: by position, and by the function's own names where it has them."""
    try:
        parameters = list(inspect.signature(f).parameters.values())[skip:]
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [f"input {i} ({plain[i]})" if i < len(plain) else f"input {i}" for i in range(count)]


def _many(outs: Any, unwrap: bool = False) -> Any:
    outs = outs if isinstance(outs, tuple | list) else (outs,)
    return [o.data if isinstance(o, Tensor) else np.asarray(o) for o in outs] if unwrap else outs


def _arrived(leaf: Tensor) -> Array:
    """The gradient of a leaf; one that nothing flows to has the gradient zero."""
    return np.zeros_like(leaf.data) if leaf.grad is None else leaf.grad
