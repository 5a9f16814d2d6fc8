"""Look up rows of a table by integer ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.autograd import Index, op
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight
from minilora.ops.linear import contiguous, packed, rows

Array = NDArray[Any]


@op(
    "ids:int[*], weight:weight[V, D] -> y[*, D]",
    domain={"ids": Index("V")},
    source="a product with one-hot rows: y = onehot(ids) @ weight",
    formula="y[i] = weight[ids[i]]",
    saves="ids",
    flops=lambda s: 0,
)
def embedding(ids: NDArray[np.integer[Any]], weight: Array | FrozenWeight) -> tuple[Array, Any]:
    """Return the rows of ``weight`` that ``ids`` name.

    ids     (*)     integers in [0, V)
    weight  (V, D)  the table; an array, a trained Tensor or a FrozenWeight

    Returns y (*, D). ShapeError where an id is outside the table.
    """
    _check_ids(ids, weight.shape[0])
    y = weight.rows(ids) if isinstance(weight, FrozenWeight) else weight[ids]
    return y, (ids, weight.shape, weight.dtype)


def _check_ids(ids: NDArray[np.integer[Any]], count: int) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        bad = ids[(ids < 0) | (ids >= count)].flat[0]
        raise ShapeError(f"embedding: ids holds {bad}, but weight has rows 0 to {count - 1}")


@embedding.defvjp
def _embedding_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    ids, shape, dtype = saved
    grad_weight = np.zeros(shape, dtype)
    np.add.at(grad_weight, ids.reshape(-1), rows(grad))  # ids may repeat
    return None, grad_weight


@embedding.defkernel
def _embedding_kernel(ids: NDArray[np.integer[Any]], weight: Array | FrozenWeight) -> tuple[Array, Any]:
    table = weight.dequantize() if isinstance(weight, FrozenWeight) and weight.storage == "f32" else weight
    if isinstance(table, FrozenWeight) or not (table.flags.c_contiguous and table.flags.aligned):
        return embedding.reference.forward(ids, weight)  # rather than copy or decode a whole table for some rows
    _check_ids(ids, table.shape[0])
    y = kernels.compiled().embedding_forward(_flat(ids), table, kernels.threads())
    return y.reshape(*ids.shape, table.shape[1]), (ids, table.shape, table.dtype)


@_embedding_kernel
def _embedding_kernel_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    ids, shape, _ = saved
    return None, kernels.compiled().embedding_backward(packed(grad), _flat(ids), shape[0], kernels.threads())


def _flat(ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    return contiguous(ids.reshape(-1).astype(np.int64, copy=False))
