"""Look up rows of a table by integer ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Index, op
from minilora.errors import ShapeError
from minilora.kernels.frozen import FrozenWeight
from minilora.ops.linear import rows

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
    count = weight.shape[0]
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        bad = ids[(ids < 0) | (ids >= count)].flat[0]
        raise ShapeError(f"embedding: ids holds {bad}, but weight has rows 0 to {count - 1}")
    y = weight.rows(ids) if isinstance(weight, FrozenWeight) else weight[ids]
    return y, (ids, weight.shape, weight.dtype)


@embedding.defvjp
def _embedding_vjp(grad: Array, saved: Any, need: tuple[bool, ...]) -> tuple[Array | None, ...]:
    ids, shape, dtype = saved
    grad_weight = np.zeros(shape, dtype)
    np.add.at(grad_weight, ids.reshape(-1), rows(grad))  # ids may repeat
    return None, grad_weight
