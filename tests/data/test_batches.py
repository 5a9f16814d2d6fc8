"""Batches: padding, seeded order, exact resumption, and that nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import (
    IGNORED,
    Batch,
    Example,
    TrainingBatches,
    evaluation_batches,
    left_pad,
    rows_by_length,
)
from minilora.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=50)


def made(lengths: Sequence[int]) -> list[Example]:
    """Examples of these lengths whose tokens tell row and position; the first half is not counted."""
    examples = []
    for row, length in enumerate(lengths):
        ids = (1000 * (row + 1) + np.arange(length)).astype(np.int32)
        labels = np.where(np.arange(length) < length // 2, np.int32(IGNORED), ids)
        examples.append(Example(ids, labels, f"d.jsonl:{row + 1}"))
    return examples


def assert_holds(batch: Batch, examples: list[Example]) -> None:
    """Every row is its example, then padding that neither counts nor is seen."""
    assert (batch.input_ids.dtype, batch.labels.dtype, batch.attention_mask.dtype) == (
        np.int64,
        np.int64,
        bool,
    )
    assert batch.input_ids.shape == batch.labels.shape == batch.attention_mask.shape
    for row, ids, labels, mask in zip(batch.rows, batch.input_ids, batch.labels, batch.attention_mask, strict=True):
        example = examples[row]
        n = len(example)
        assert np.array_equal(ids[:n], example.input_ids)
        assert np.array_equal(labels[:n], example.labels)
        assert np.all(ids[n:] == 7)
        assert np.all(labels[n:] == IGNORED)
        assert np.array_equal(mask, np.arange(len(mask)) < n)
    assert batch.input_ids.shape[1] == max(len(examples[row]) for row in batch.rows)
    assert batch.token_count == sum(len(examples[row]) for row in batch.rows)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 2**64 - 1))
def test_every_epoch_holds_every_example_once_whole(lengths: list[int], batch_size: int, seed: int) -> None:
    examples = made(lengths)
    stream = TrainingBatches(examples, batch_size=batch_size, seed=seed, pad_token_id=7)
    assert stream.batches_per_epoch == -(-len(examples) // batch_size)
    for _ in range(2):
        batches = list(islice(stream, stream.batches_per_epoch))
        assert sorted(row for batch in batches for row in batch.rows) == list(range(len(examples)))
        for batch in batches:
            assert_holds(batch, examples)


@given(LENGTHS, st.integers(1, 9))
def test_evaluation_holds_every_example_once_shortest_first(lengths: list[int], batch_size: int) -> None:
    examples = made(lengths)
    batches = list(evaluation_batches(examples, batch_size=batch_size, pad_token_id=7))
    rows = [row for batch in batches for row in batch.rows]
    assert rows == sorted(range(len(lengths)), key=lambda row: lengths[row])  # sorted is stable
    for batch in batches:
        assert_holds(batch, examples)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 60), st.integers(0, 2**32))
def test_a_resumed_stream_goes_on_with_the_very_same_batches(
    lengths: list[int], batch_size: int, taken: int, seed: int
) -> None:
    examples = made(lengths)
    first = TrainingBatches(examples, batch_size=batch_size, seed=seed)
    for _ in range(taken):
        next(first)
    state = json.loads(json.dumps(first.state_dict()))
    second = TrainingBatches(examples, batch_size=batch_size, seed=seed)
    second.load_state_dict(state)
    assert second.state_dict() == state
    for _ in range(2 * first.batches_per_epoch):
        assert np.array_equal(next(first).rows, next(second).rows)
    assert first.state_dict() == second.state_dict()


def epoch(seed: int, number: int = 0) -> list[int]:
    """The rows of an epoch of 32 examples, in order."""
    stream = TrainingBatches(made([3] * 32), batch_size=4, seed=seed)
    rows = [row for batch in islice(stream, 8 * (number + 1)) for row in batch.rows.tolist()]
    return rows[32 * number :]


def test_seeds_and_epochs_give_different_orders_and_a_seed_always_the_same() -> None:
    orders = [epoch(0), epoch(0, 1), epoch(1), epoch(1, 1), epoch(2**64 - 1)]
    assert len({tuple(order) for order in orders}) == 5
    assert epoch(1, 1) == orders[3]


def test_the_order_of_a_seed_is_fixed_for_ever() -> None:
    # A change here changes every user's training run: it belongs in the CHANGELOG.
    assert epoch(0)[:8] == [15, 14, 6, 18, 16, 28, 19, 30]


def test_padding_is_little_but_batches_still_mix_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 64, 512).tolist()
    batches = list(islice(TrainingBatches(made(lengths), batch_size=8, seed=0), 64))
    padded, tokens = sum(b.input_ids.size for b in batches), sum(lengths)
    unsorted = sum(8 * max(lengths[i : i + 8]) for i in range(0, 512, 8))
    # Sorting within 4 batches takes away most of what is padded without it.
    assert padded - tokens < 0.4 * (unsorted - tokens)
    # The first quarter of the epoch is as long as the whole: it does not begin with the short ones.
    first = np.mean([b.token_count for b in batches[:16]]) / 8
    assert abs(first - np.mean(lengths)) < 4 * np.std(lengths) / np.sqrt(128)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 4}, "the saved place in the data has seed 4, but this run has 3; resume with the settings"),
        ({"batch_size": 9}, "has batch_size 9, but this run has 2"),
        ({"examples": 6}, "has examples 6, but this run has 5"),
        ({"seed": None}, "has seed None, but this run has 3"),
        ({"epoch": -1}, "epoch -1, batch 1; wanted an epoch from 0 and a batch from 0 to 2"),
        ({"index": 3}, "epoch 0, batch 3; wanted"),
        ({"index": "1"}, "epoch 0, batch '1'; wanted"),
        ({"epoch": True}, "epoch True, batch 1; wanted"),
    ],
)
def test_a_place_in_another_order_is_refused_and_nothing_moves(change: dict[str, int], words: str) -> None:
    stream = TrainingBatches(made([2, 3, 4, 5, 6]), batch_size=2, seed=3)
    next(stream)
    before = stream.state_dict()
    with pytest.raises(ConfigError) as error:
        stream.load_state_dict({**before, **change})
    assert words in str(error.value)
    assert stream.state_dict() == before


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        TrainingBatches(made([2]), batch_size=0)
    with pytest.raises(ConfigError, match="there are no examples to make batches of"):
        list(evaluation_batches([], batch_size=1))
    for seed in (-1, 2**64):
        with pytest.raises(ConfigError, match=f"seed is {seed}; it must lie in"):
            TrainingBatches(made([2]), batch_size=1, seed=seed)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), max_size=6))
def test_prompts_padded_on_the_left_all_end_at_the_right_edge(prompts: list[list[int]]) -> None:
    ids, mask = left_pad(prompts, pad_token_id=99)
    assert ids.shape == mask.shape == (len(prompts), max(map(len, prompts), default=0))
    assert [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)] == prompts
    assert np.all(ids[~mask] == 99)
    assert np.all(np.diff(mask.astype(int), axis=1) >= 0)  # once seen, seen to the end


def test_a_prompt_without_tokens_is_refused_by_its_number() -> None:
    with pytest.raises(ConfigError, match="prompt 1 has no tokens"):
        left_pad([[1], [], [2]])


def test_rows_are_grouped_by_length_for_generation_too() -> None:
    assert [rows.tolist() for rows in rows_by_length([5, 1, 5, 2, 9], 2)] == [[1, 3], [0, 2], [4]]
    assert rows_by_length([], 2) == []
