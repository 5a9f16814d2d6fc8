"""Continue token sequences with any model that is a call with a cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minilora.autograd import no_grad
from minilora.errors import ConfigError, ShapeError
from minilora.generate.cache import KVCache
from minilora.generate.sampling import Sampling

Array = NDArray[Any]
Model = Callable[..., Any]  # (ids, attention_mask=, cache=, logits_to_keep=) -> logits (B, 1, V) as a Tensor


def stream(
    model: Model,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    max_new_tokens: int,
    stop: Collection[int] = (),
    sampling: Sampling | None = None,
    seed: int | None = None,
    cache: KVCache | None = None,
    adapters: Sequence[str | None] | None = None,
) -> Iterator[Array]:
    """Yield the next token of every row, (B,) int64, until every row has stopped; -1 in rows that have.

    input_ids       (B, T)      prompts, padded on the left
    attention_mask  (B, P + T)  False for padding; P positions are already in ``cache``
    max_new_tokens              tokens a row at most
    stop                        token ids that end a row; the token itself is yielded
    cache                       positions that all rows continue, from earlier calls; it is not kept in step
    adapters                    a name or None a row, given to the model for those that it still computes

    Rows that have stopped are dropped from the computation.
    """
    ids = np.atleast_2d(np.asarray(input_ids))
    cache = cache or KVCache()
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise ShapeError(
            f"generate: input_ids has shape {ids.shape} and dtype {ids.dtype}, expected integers (batch, time) "
            "with at least one token a row"
        )
    for name, value in (("max_new_tokens", max_new_tokens), ("seed", 0 if seed is None else seed)):
        if not isinstance(value, Integral) or value < 0:
            raise ConfigError(f"{name} is {value!r}, expected a whole number of 0 or more")
    stop = tuple(stop)
    for token in stop:
        if not isinstance(token, Integral):
            raise ConfigError(f"stop holds {token!r}, expected token ids")
    rows, held = ids.shape[0], cache.length + ids.shape[1]
    mask = np.ones((rows, held), bool) if attention_mask is None else np.atleast_2d(np.asarray(attention_mask)) != 0
    if mask.shape != (rows, held):
        raise ShapeError(f"generate: attention_mask has shape {mask.shape}, expected {(rows, held)}")
    if not mask[:, -1].all():
        raise ShapeError(
            "generate: attention_mask ends in padding in row "
            f"{int(np.argmin(mask[:, -1]))}; pad prompts on the left to generate from them"
        )
    sampling, rng = sampling or Sampling(), np.random.default_rng(seed)
    stops = np.fromiter(stop, np.int64)
    live = np.arange(rows)  # the rows of the batch that the model still computes …
    running = np.ones(rows, bool)  # … and, among them, those that have not stopped
    for _ in range(max_new_tokens):
        own = {} if adapters is None else {"adapters": [adapters[row] for row in live.tolist()]}
        with no_grad():
            logits = model(ids, attention_mask=mask, cache=cache, logits_to_keep=1, **own).data[:, -1]
        chosen = np.where(running, sampling.choose(logits, rng), -1)
        step = np.full(rows, -1, np.int64)
        step[live] = chosen
        yield step
        running &= ~np.isin(chosen, stops)
        if not running.any():
            return
        if running.sum() <= 0.75 * len(live):  # copying the cache costs less than the rows it drops
            kept = np.flatnonzero(running)
            live, chosen, mask, cache = live[kept], chosen[kept], mask[kept], cache.select(kept)
            running = np.ones(len(kept), bool)
        ids = np.maximum(chosen, 0)[:, None]
        mask = np.concatenate([mask, np.ones((len(live), 1), bool)], axis=1)


def generate(
    model: Model,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    max_new_tokens: int,
    stop: Collection[int] = (),
    sampling: Sampling | None = None,
    seed: int | None = None,
    pad: int = 0,
    cache: KVCache | None = None,
    adapters: Sequence[str | None] | None = None,
) -> Array:
    """Return prompts and continuations as ids (B, T + n); rows that stopped early end in ``pad``.

    The arguments are those of ``stream``.
    """
    steps = stream(
        model, input_ids, attention_mask,
        max_new_tokens=max_new_tokens, stop=stop, sampling=sampling, seed=seed, cache=cache, adapters=adapters,
    )  # fmt: skip
    columns = [np.where(step < 0, pad, step)[:, None] for step in steps]
    return np.concatenate([np.atleast_2d(np.asarray(input_ids)), *columns], axis=1)
