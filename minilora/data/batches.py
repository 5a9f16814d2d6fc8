"""Deal examples out in padded batches: in a seeded order that can be resumed, with little padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minilora.data.examples import IGNORED, Example
from minilora.errors import ConfigError

SORT_WINDOW = 4  # batches sorted by length together; see TrainingBatches


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples side by side, padded on the right.

    input_ids       (B, T) int64
    labels          (B, T) int64, IGNORED where padded or not counted
    attention_mask  (B, T) bool, False where padded
    rows            (B,) int64, which example each row is
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    attention_mask: NDArray[np.bool_]
    rows: NDArray[np.int64]

    @property
    def token_count(self) -> int:
        """Tokens without the padding."""
        return int(np.count_nonzero(self.attention_mask))


class TrainingBatches:
    """Endless batches, every example once an epoch, in an order drawn from (seed, epoch) alone.

    Batches are filled from windows of SORT_WINDOW batches that are sorted by length. A wider window would pad
    less, but would also put like with like: with the whole epoch sorted, a batch holds one kind of example and
    its gradient points that way.

    ``state_dict`` is the place of the next batch; loading it goes on with exactly that batch.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int = 0, pad_token_id: int = 0) -> None:
        _check(examples, batch_size)
        if not 0 <= seed < 2**64:
            raise ConfigError(f"seed is {seed}; it must lie in 0 .. 2**64 - 1")
        self._examples = examples
        self._lengths = np.array([len(example) for example in examples], dtype=np.int64)
        self._batch_size, self._seed, self._pad = batch_size, seed, pad_token_id
        self.epoch = 0
        self.index = 0
        self._order = self._epoch_order(0)

    @property
    def batches_per_epoch(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = _right_pad(self._examples, self._order[self.index], self._pad)
        self._move_to(self.epoch, self.index + 1)
        return batch

    def state_dict(self) -> dict[str, int]:
        """Return the place of the next batch and what the order depends on, as plain numbers."""
        return {"epoch": self.epoch, "index": self.index, **self._identity()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go to a saved place. Raises ConfigError when it belongs to another order, changing nothing."""
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ConfigError(
                    f"the saved place in the data has {name} {state.get(name)}, but this run has {mine}; "
                    "resume with the settings and the data of the first run"
                )
        epoch, index = state.get("epoch"), state.get("index")
        if type(epoch) is not int or type(index) is not int or epoch < 0 or not 0 <= index < len(self._order):
            raise ConfigError(
                f"the saved place in the data is epoch {epoch!r}, batch {index!r}; "
                f"wanted an epoch from 0 and a batch from 0 to {len(self._order) - 1}"
            )
        self._move_to(epoch, index)

    def _identity(self) -> dict[str, int]:
        return {"seed": self._seed, "batch_size": self._batch_size, "examples": len(self._examples)}

    def _move_to(self, epoch: int, index: int) -> None:
        if index == len(self._order):
            epoch, index = epoch + 1, 0
        if epoch != self.epoch:
            self._order = self._epoch_order(epoch)
        self.epoch, self.index = epoch, index

    def _epoch_order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the rows of every batch of an epoch."""
        # Sorting raw bits instead of calling Generator.permutation: NumPy keeps the bit stream of Philox
        # between versions, but not what its methods make of it.
        philox = np.random.Philox(key=np.array([self._seed, epoch], dtype=np.uint64))
        shuffled = np.argsort(philox.random_raw(len(self._examples)), kind="stable")
        batches: list[NDArray[np.int64]] = []
        window = SORT_WINDOW * self._batch_size
        for start in range(0, len(shuffled), window):
            rows = shuffled[start : start + window]
            batches += _by_length(self._lengths, rows, self._batch_size)
        return [batches[i] for i in np.argsort(philox.random_raw(len(batches)), kind="stable")]


def evaluation_batches(examples: Sequence[Example], *, batch_size: int, pad_token_id: int = 0) -> Iterator[Batch]:
    """Yield every example once, shortest first: always the same batches, nearly without padding."""
    _check(examples, batch_size)
    for rows in rows_by_length([len(example) for example in examples], batch_size):
        yield _right_pad(examples, rows, pad_token_id)


def rows_by_length(lengths: Sequence[int], batch_size: int) -> list[NDArray[np.int64]]:
    """Group rows of like length into batches, shortest first; equal lengths keep their order."""
    return _by_length(np.asarray(lengths, dtype=np.int64), np.arange(len(lengths)), batch_size)


def left_pad(prompts: Sequence[Sequence[int]], pad_token_id: int = 0) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Pad prompts on the left, so that all of them end where generation begins.

    Returns ids (B, T) and attention_mask (B, T), False where padded.
    """
    if not all(len(prompt) for prompt in prompts):
        raise ConfigError(f"prompt {[len(p) for p in prompts].index(0)} has no tokens; give each at least one")
    width = max((len(prompt) for prompt in prompts), default=0)
    ids = np.full((len(prompts), width), pad_token_id, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = True
    return ids, mask


def _by_length(lengths: NDArray[np.int64], rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]


def _right_pad(examples: Sequence[Example], rows: NDArray[np.int64], pad_token_id: int) -> Batch:
    chosen = [examples[row] for row in rows]
    width = max(len(example) for example in chosen)
    ids = np.full((len(chosen), width), pad_token_id, dtype=np.int64)
    labels = np.full(ids.shape, IGNORED, dtype=np.int64)
    for row, example in enumerate(chosen):
        ids[row, : len(example)] = example.input_ids
        labels[row, : len(example)] = example.labels
    mask = np.arange(width) < np.array([[len(example)] for example in chosen])
    return Batch(ids, labels, mask, rows)


def _check(examples: Sequence[Example], batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    if not examples:
        raise ConfigError("there are no examples to make batches of; give at least one")
