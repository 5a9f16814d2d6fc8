"""Products of arrays: matmul, outer, einsum."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import op
from minilora.errors import ConfigError, ShapeError
from minilora.ops.elementwise import unbroadcast
from minilora.ops.linear import rows

Array = NDArray[Any]
Shape = tuple[int, ...]


def _matmul_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    batch = rng.choice([0, 1, 2, 3], size=2, p=[0.1, 0.2, 0.4, 0.3]).tolist()
    m, k, n = rng.choice([0, 1, 2, 3, 5], size=3, p=[0.1, 0.2, 0.3, 0.3, 0.1]).tolist()
    leading = [[1 if rng.random() < 0.2 else b for b in batch[int(rng.integers(3)) :]] for _ in range(2)]
    x = (k,) if rng.random() < 0.2 else (*leading[0], m, k)
    y = (k,) if rng.random() < 0.2 else (*leading[1], k, n)
    return {"x": rng.standard_normal(x), "y": rng.standard_normal(y)}


def _matmul_flops(s: Mapping[str, Any]) -> int:
    """2 M K N for each matrix of the batch; a 1-d operand is one row, or one column."""
    x, y = s["x"], s["y"]
    m, n = x[-2:-1], y[-1:] if len(y) > 1 else ()
    return 2 * math.prod((*np.broadcast_shapes(x[:-2], y[:-2]), *m, x[-1], *n))


@op(
    "x[?], y[?] -> z[?]",
    source="NumPy's matmul; product rule",
    formula="z[…, m, n] = Σ_k x[…, m, k] y[…, k, n]",
    saves="x, y",
    flops=_matmul_flops,
    draw=_matmul_draw,
)
def matmul(x: Array, y: Array, *, need: tuple[bool, ...]) -> tuple[Array, Any]:
    """Multiply matrices, or stacks of them, as np.matmul does.

    x  (…, M, K), or (K,): one row, whose axis the result lacks
    y  (…, K, N), or (K,): one column, whose axis the result lacks

    The leading axes broadcast. ShapeError where they do not, where K differs, or for an operand without axes. For a
    frozen or quantized y see ``linear``.
    """
    for name, a in (("x", x), ("y", y)):
        if a.ndim == 0:
            raise ShapeError(
                f"matmul: {name} has shape (), expected at least one axis\n  to multiply by a number, use *"
            )
    inner = y.shape[-2:][0]
    if x.shape[-1] != inner:
        raise ShapeError(
            f"matmul: x has shape {x.shape} and y {y.shape}; "
            f"axis -1 of x has size {x.shape[-1]}, but axis {-min(y.ndim, 2)} of y has {inner}"
        )
    try:
        return np.matmul(x, y), (x.shape, y.shape, x if need[1] else None, y if need[0] else None)
    except ValueError:
        raise ShapeError(
            f"matmul: x has shape {x.shape} and y {y.shape}; their leading axes {x.shape[:-2]} and {y.shape[:-2]} "
            "do not broadcast"
        ) from None


@matmul.defvjp
def _matmul_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    x_shape, y_shape, x, y = saved
    if len(y_shape) == 1:
        grad, y = grad[..., None], None if y is None else y[:, None]
    if len(x_shape) == 1:
        grad, x = grad[..., None, :], None if x is None else x[None]
    grad_x = grad_y = None
    if need[0]:
        grad_x = unbroadcast(grad @ y.swapaxes(-1, -2), x_shape if len(x_shape) > 1 else (1, *x_shape)).reshape(x_shape)
    if need[1] and len(y_shape) <= 2:
        grad_y = (rows(x).T @ rows(grad)).reshape(y_shape)  # one product sums over the batch as well
    elif need[1]:
        grad_y = unbroadcast(x.swapaxes(-1, -2) @ grad, y_shape if len(y_shape) > 1 else (*y_shape, 1)).reshape(y_shape)
    return grad_x, grad_y


@op(
    "x[M], y[N] -> z[M, N]",
    source="product rule",
    formula="z[m, n] = x[m] y[n]",
    saves="x, y",
)
def outer(x: Array, y: Array, *, need: tuple[bool, ...]) -> tuple[Array, Any]:
    """Multiply each element of ``x`` by each of ``y``, as np.outer does for 1-d arrays.

    x  (M,)
    y  (N,)

    Returns z (M, N).
    """
    return np.outer(x, y), (x if need[1] else None, y if need[0] else None)


@outer.defvjp
def _outer_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    x, y = saved
    return grad @ y if need[0] else None, x @ grad if need[1] else None


def _einsum_draw(rng: np.random.Generator, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Up to three operands whose letters repeat, are summed or are stretched, with an ellipsis or without."""
    size = dict(zip("kijb", rng.choice([0, 1, 2, 3], size=4, p=[0.05, 0.15, 0.4, 0.4]).tolist(), strict=True))
    batch = rng.integers(1, 4, size=2).tolist()
    dots, terms, xs = rng.random() < 0.4, [], []
    for _ in range(rng.integers(1, 4)):
        letters = "".join(rng.choice(list(size), size=rng.integers(0, 4)))
        shape = [1 if letters.count(c) == 1 and rng.random() < 0.1 else size[c] for c in letters]
        cut = int(rng.integers(len(letters) + 1))
        lead = [1 if rng.random() < 0.2 else n for n in batch[int(rng.integers(3)) :]] if dots else []
        terms.append(letters[:cut] + "..." * dots + letters[cut:])
        xs.append(rng.standard_normal([*shape[:cut], *lead, *shape[cut:]]))
    used = sorted({c for term in terms for c in term if c != "."})
    kept = rng.permutation(used)[: rng.integers(len(used) + 1)] if used else ()
    output = "->" + "".join([*kept, "..." * dots]) if rng.random() < 0.7 else ""
    return {"subscripts": ",".join(terms) + output, "xs": tuple(xs)}


def _einsum_flops(s: Mapping[str, Any]) -> int:
    """For each combination of all letters one product of all operands, and one sum."""
    letters, _ = _read(s["subscripts"], s["xs"])
    sizes: dict[str, int] = {}
    for own, shape in zip(letters, s["xs"], strict=True):
        for letter, size in zip(own, shape, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    return len(s["xs"]) * math.prod(sizes.values())


@op(
    "*xs[?] -> y[?]",
    source="Einstein's summation, in NumPy's notation; product rule",
    formula="y[output] = Σ over every letter not in output of xs[0][…] xs[1][…] …",
    saves="xs",
    flops=_einsum_flops,
    draw=_einsum_draw,
)
def einsum(subscripts: str, xs: tuple[Array, ...], *, need: tuple[bool, ...]) -> tuple[Array, Any]:
    """Sum products over named axes, as np.einsum does: einsum("ij,jk->ik", x, y).

    subscripts  a letter for each axis of each operand, "..." for axes that broadcast, and after "->" those of the
                result; without "->", the ellipsis and in alphabetical order the letters that occur once. A letter that
                is twice in one operand takes its diagonal.
    xs          the operands, one by one or in a list

    ConfigError where the subscripts cannot be read, ShapeError where the operands do not fit them.
    """
    letters, output = _read(subscripts, [x.shape for x in xs])
    sizes = _sizes(subscripts, letters, xs)
    needed = [any(n for j, n in enumerate(need) if j != i) for i in range(len(xs))]
    saved = tuple(x if wanted else None for x, wanted in zip(xs, needed, strict=True))
    views = [_distinct(x, own, sizes) for x, own in zip(xs, letters, strict=True)]
    return _product(views, output), (saved, [x.shape for x in xs], letters, output, sizes)


@einsum.defvjp
def _einsum_vjp(grad: Array, saved: Any, need: tuple[bool, ...], *, subscripts: str) -> tuple[Array | None, ...]:
    xs, shapes, letters, output, sizes = saved
    parts: list[Array | None] = []
    for i, wanted in enumerate(need):
        if not wanted:
            parts.append(None)
            continue
        others = [_distinct(x, own, sizes) for j, (x, own) in enumerate(zip(xs, letters, strict=True)) if j != i]
        grad_x = np.zeros(shapes[i], grad.dtype)
        view, own = _distinct(grad_x, letters[i], sizes)
        reached = {c for _, names in others for c in names} | set(output)
        part = _product([(grad, output), *others], "".join(c for c in own if c in reached))
        # A letter that nothing else has was summed over this operand alone: its gradient is the same all along it.
        view[...] = part[tuple(slice(None) if c in reached else None for c in own)]
        parts.append(grad_x)
    return tuple(parts)


def _product(views: Sequence[tuple[Array, str]], output: str) -> Array:
    arrays = [array for array, _ in views]
    text = ",".join(names for _, names in views)
    return np.asarray(np.einsum(f"{text}->{output}", *arrays, optimize=len(arrays) > 1))


def _distinct(x: Array, letters: str, sizes: Mapping[str, int]) -> tuple[Array, str]:
    """A view of ``x`` with each letter once, by its diagonal, and without the axes of size 1 that are stretched."""
    own = "".join(dict.fromkeys(letters))
    view = np.einsum(f"{letters}->{own}", x) if own != letters else x
    stretched = [n != sizes[c] for n, c in zip(view.shape, own, strict=True)]
    kept = "".join(c for c, drop in zip(own, stretched, strict=True) if not drop)
    return view[tuple([0 if drop else slice(None) for drop in stretched] + [...])], kept


def _read(subscripts: str, shapes: Sequence[Shape]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, an ellipsis spelled out in letters that are not used otherwise."""
    if not isinstance(subscripts, str):
        raise ConfigError(f"einsum: subscripts is {type(subscripts).__name__}, expected a string such as 'ij,jk->ik'")
    left, arrow, output = subscripts.replace(" ", "").partition("->")
    terms = left.split(",")
    for term in (*terms, output):
        if not re.fullmatch(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*", term):
            raise ConfigError(
                f"einsum: subscripts {subscripts!r} hold {term!r}, expected letters and perhaps one ellipsis"
            )
    wrong = [c for c in output.replace("...", "") if c not in left or output.count(c) > 1]
    if wrong or ("..." in output) > ("..." in left):
        raise ConfigError(
            f"einsum: subscripts {subscripts!r} name {wrong[0] if wrong else '...'!r} in the result, "
            "expected what an operand has, and once"
        )
    if arrow and "..." in left and "..." not in output:
        raise ConfigError(f"einsum: subscripts {subscripts!r} lose the ellipsis, expected '...' in the result as well")
    if len(terms) != len(shapes):
        raise ShapeError(f"einsum: subscripts {subscripts!r} are for {len(terms)} operands, but xs has {len(shapes)}")
    spare = [c for c in string.ascii_letters if c not in left]
    letters, widest = [], 0
    for i, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        before, dots, after = term.partition("...")
        count = len(shape) - len(before + after)
        if count < 0 or count > (len(spare) if dots else 0):
            raise ShapeError(
                f"einsum: operand {i} of xs has shape {shape}, expected the axes {term!r} of {subscripts!r}"
            )
        letters.append(before + "".join(spare[:count][::-1]) + after)
        widest = max(widest, count)
    batch = "".join(spare[:widest][::-1])
    once = "".join(sorted(c for c in left if left.count(c) == 1 and c.isalpha()))
    return letters, output.replace("...", batch) if arrow else batch + once


def _sizes(subscripts: str, letters: Sequence[str], xs: Sequence[Array]) -> dict[str, int]:
    """The size of each letter, where one of size 1 stretches; ShapeError where two differ otherwise."""
    sizes: dict[str, int] = {}
    for i, (own, x) in enumerate(zip(letters, xs, strict=True)):
        for c, n in zip(own, x.shape, strict=True):
            here, known = x.shape[own.index(c)], sizes.setdefault(c, n)
            if n != here or (n != known and 1 not in (n, known)):
                name = repr(c) if c in subscripts else "an axis of '...'"
                raise ShapeError(
                    f"einsum: operand {i} of xs has shape {x.shape}, in which {name} has size {n}, "
                    f"but {'its first has' if n != here else 'an operand before it has'} {here if n != here else known}"
                )
            sizes[c] = n if known == 1 else known
    return sizes
