"""Gradients of functions on ndarrays: grad and value_and_grad, for those who want no Tensors of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, enable_grad, tensor
from minilora.autograd.backward import backward, seed
from minilora.errors import ConfigError, MiniloraError, ShapeError
from minilora.graph.subgraph import cut, moment, nodes_since
from minilora.kernels import FrozenWeight

Array = NDArray[Any]


def grad(f: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """Make a function that returns the gradient of ``f`` with respect to some of its arguments.

    f        computes one number, a Tensor, from its arguments
    argnums  which positional arguments: one, or several for a tuple of gradients

    ``f`` gets Tensors in place of the arrays it is differentiated for, and all else as it is given. Such an argument is
    an array, float32 or float64, or a dict, list or tuple of them; its gradient is built the same way of new arrays,
    each of its array's shape and dtype, zeros where ``f`` does not depend on it.

        >>> import numpy as np, minilora as ml
        >>> ml.grad(lambda x: (x * x).sum())(np.array([1.0, 2.0]))
        array([2., 4.])

    Trained Tensors that ``f`` closes over are constants here: neither their ``grad`` nor their tape is touched.
    MiniloraError where ``f`` returns no Tensor, ShapeError where it has several elements, ConfigError where an argument
    cannot be differentiated or argnums names one that was not given.
    """
    differentiated = _differentiated("grad", f, argnums)

    @functools.wraps(f)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        return differentiated(args, kwargs)[1]

    return gradient


def value_and_grad(f: Callable[..., Tensor], argnums: int | Sequence[int] = 0) -> Callable[..., tuple[Array, Any]]:
    """Make a function that returns the value of ``f``, an ndarray of one element, and what grad(f, argnums) returns."""
    differentiated = _differentiated("value_and_grad", f, argnums)

    @functools.wraps(f)
    def value_and_gradient(*args: Any, **kwargs: Any) -> tuple[Array, Any]:
        return differentiated(args, kwargs)

    return value_and_gradient


def _differentiated(
    name: str, f: Callable[..., Any], argnums: int | Sequence[int]
) -> Callable[[Sequence[Any], Mapping[str, Any]], tuple[Array, Any]]:
    wanted = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Array, Any]:
        places = _places(name, wanted, len(args))
        given = list(args)
        for place in places:
            given[place] = _mapped(functools.partial(_leaf, name), args[place], f"argument {place}")
        leaves = [given[place] for place in places]
        value = _value_with_gradients(name, functools.partial(f, *given, **kwargs), leaves)
        found = tuple(_mapped(_gradient, tree, "") for tree in leaves)
        return value, found[0] if isinstance(argnums, int) else found

    return run


def _value_with_gradients(name: str, f: Callable[[], Any], leaves: Any) -> Array:
    """Run ``f`` recorded and pull its gradient back to ``leaves``, but to nothing that was there before."""
    start = moment()
    with enable_grad():
        out = f()
    if not isinstance(out, Tensor):
        raise MiniloraError(
            f"{name}: f returned {type(out).__name__}, expected a Tensor of one element\n"
            "  compute it from the Tensors that f gets, by minilora.ops and Tensor's operators"
        )
    if out.size != 1:
        raise ShapeError(
            f"{name}: f returned a tensor of shape {out.shape}, expected one element\n"
            "  reduce it, for example with sum()"
        )
    ours: set[Any] = set()
    _mapped(lambda leaf, _: ours.add(leaf.edge[0]), leaves, "")
    nodes = nodes_since(start, [out.edge])
    cut(nodes, lambda edge: edge if edge[0] in ours else None)
    if out.edge is not None and (nodes or out.edge[0] in ours):
        backward(out.edge, seed(out.shape, out.dtype, None))
    return np.array(out.data)


def _places(name: str, wanted: tuple[int, ...], count: int) -> list[int]:
    for place in wanted:
        if not -count <= place < count:
            raise ConfigError(f"{name}: argnums is {place}, but f was called with {count} positional arguments")
    places = [place % count for place in wanted]
    if len(set(places)) != len(places):
        raise ConfigError(f"{name}: argnums {wanted} names an argument twice")
    return places


def _mapped(function: Callable[[Any, str], Any], tree: Any, path: str) -> Any:
    """Rebuild dicts, lists and tuples with ``function`` of each item in them and its path."""
    if isinstance(tree, dict):
        return {key: _mapped(function, value, f"{path}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = [_mapped(function, value, f"{path}[{i}]") for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return function(tree, path)


def _leaf(name: str, value: Any, path: str) -> Tensor:
    """A trained Tensor over the array itself, not a copy."""
    if isinstance(value, FrozenWeight):
        raise ConfigError(f"{name}: {path} is a FrozenWeight, which has no gradient\n  leave it out of argnums")
    if isinstance(value, Tensor) and value.requires_grad:
        raise ConfigError(
            f"{name}: {path} is a Tensor that requires a gradient, and there are no gradients of gradients\n"
            "  give its array, x.data"
        )
    array = value.data if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype not in (np.float32, np.float64):
        found = f"has dtype {array.dtype}" if array.dtype != object else f"is {type(value).__name__}"
        raise ConfigError(
            f"{name}: {path} {found}, expected float32 or float64\n  convert it, or leave it out of argnums"
        )
    return tensor(array, requires_grad=True)


def _gradient(leaf: Tensor, path: str) -> Array:
    return np.zeros(leaf.shape, leaf.dtype) if leaf.grad is None else leaf.grad
