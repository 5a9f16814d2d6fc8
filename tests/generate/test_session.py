"""Continuing token sequences with any model that is a call with a cache: here one made for the test."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minilora import ConfigError, MiniloraError, ShapeError
from minilora.autograd import is_recording, no_grad
from minilora.generate import KVCache, Sampling, generate, stream

VOCABULARY = 50


class Adder:
    """The next token is the sum of all visible tokens so far, modulo the vocabulary: nothing may be lost."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []  # rows and new positions of each

    def __call__(self, ids, attention_mask, cache, logits_to_keep):
        assert logits_to_keep == 1
        assert not is_recording()
        rows, time = ids.shape
        self.calls.append((rows, time))
        tokens = ids.astype(float)[:, :, None, None]
        held, _ = cache.extend(0, tokens, tokens)
        cache.advance(time)
        assert attention_mask.shape == (rows, cache.length)
        total = (held[:, :, 0, 0] * attention_mask).sum(axis=1).astype(int) % VOCABULARY
        return SimpleNamespace(data=np.where(np.arange(VOCABULARY) == total[:, None], 9.0, 0.0)[:, None])


def expected(prompt, count, stop=(), pad=0):
    """The same, without a cache."""
    tokens = list(prompt)
    for _ in range(count):
        if len(tokens) > len(prompt) and tokens[-1] in stop:
            break
        tokens.append(sum(tokens) % VOCABULARY)
    return tokens + [pad] * (len(prompt) + count - len(tokens))


def test_each_token_follows_from_all_before_it():
    found = generate(Adder(), [[3, 4]], max_new_tokens=6)
    np.testing.assert_array_equal(found, [expected([3, 4], 6)])
    np.testing.assert_array_equal(found, [[3, 4, 7, 14, 28, 6, 12, 24]])


def test_a_prompt_may_be_one_row_without_a_batch():
    np.testing.assert_array_equal(generate(Adder(), [3, 4], max_new_tokens=2), [[3, 4, 7, 14]])


def test_no_new_tokens_gives_the_prompts_and_never_calls_the_model():
    model = Adder()
    np.testing.assert_array_equal(generate(model, [[3, 4]], max_new_tokens=0), [[3, 4]])
    assert model.calls == []


def test_padding_on_the_left_is_not_seen():
    ids, mask = np.array([[49, 49, 3, 4], [1, 2, 3, 4]]), np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = generate(Adder(), ids, mask, max_new_tokens=5)
    np.testing.assert_array_equal(found[0, 4:], expected([3, 4], 5)[2:])
    np.testing.assert_array_equal(found[1], expected([1, 2, 3, 4], 5))


def test_the_stop_token_ends_a_row_and_is_part_of_it():
    found = generate(Adder(), [[3, 4]], max_new_tokens=6, stop=[28, 99], pad=49)
    np.testing.assert_array_equal(found, [[3, 4, 7, 14, 28]])
    assert generate(Adder(), [[28, 4]], max_new_tokens=2, stop=[28]).shape == (1, 4)  # in the prompt it ends nothing


def test_rows_that_stopped_are_padded_and_dropped_from_the_computation():
    rng = np.random.default_rng(4)
    prompts, stop = rng.integers(0, VOCABULARY, (12, 3)), set(range(0, VOCABULARY, 3))
    model = Adder()
    found = generate(model, prompts, max_new_tokens=8, stop=stop, pad=41)
    rows = [expected(prompt, 8, stop, pad=41) for prompt in prompts]
    np.testing.assert_array_equal(found, np.array(rows)[:, : found.shape[1]])
    assert model.calls[0] == (12, 3)
    assert all(time == 1 for _, time in model.calls[1:])
    counts = [rows for rows, _ in model.calls]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < 6
    # No more than a quarter of the computed rows had stopped.
    for step, computed in enumerate(counts):
        running = sum(1 for row in rows if not stop & set(row[3 : 3 + step]))
        assert running > 0.75 * computed or running == computed


def test_a_row_that_stopped_is_padded_also_while_it_is_still_computed():
    prompts = [[28, 0]] + [[1, 2 * i] for i in range(7)]  # the first row stops at once; one of eight is not dropped
    model = Adder()
    steps = list(stream(model, prompts, max_new_tokens=3, stop=[28]))
    assert [rows for rows, _ in model.calls] == [8, 8, 8]
    assert [step[0] for step in steps] == [28, -1, -1]
    found = generate(Adder(), prompts, max_new_tokens=3, stop=[28], pad=41)
    np.testing.assert_array_equal(found, [expected(prompt, 3, [28], pad=41) for prompt in prompts])


def test_it_ends_when_every_row_has_stopped():
    model = Adder()
    found = generate(model, [[3, 4], [10, 18]], max_new_tokens=50, stop=[28], pad=1)
    np.testing.assert_array_equal(found, [[3, 4, 7, 14, 28], [10, 18, 28, 1, 1]])
    assert len(model.calls) == 3


def test_streaming_yields_a_token_a_row_and_minus_one_in_rows_that_stopped():
    steps = list(stream(Adder(), [[3, 4], [10, 18]], max_new_tokens=50, stop=[28]))
    np.testing.assert_array_equal(steps, [[7, 28], [14, -1], [28, -1]])


def test_streaming_computes_no_further_than_it_is_read():
    model = Adder()
    steps = stream(model, [[3, 4]], max_new_tokens=50)
    next(steps)
    assert len(model.calls) == 1


def test_results_of_a_batch_are_those_of_its_rows():
    rng = np.random.default_rng(8)
    prompts = rng.integers(0, VOCABULARY, (7, 4))
    mask = np.arange(4) >= rng.integers(0, 4, (7, 1))
    together = generate(Adder(), prompts, mask, max_new_tokens=9, stop=range(0, VOCABULARY, 5), pad=0)
    for row, (prompt, seen) in enumerate(zip(prompts, mask, strict=True)):
        alone = generate(Adder(), [prompt], [seen], max_new_tokens=9, stop=range(0, VOCABULARY, 5), pad=0)
        end = alone.shape[1]
        np.testing.assert_array_equal(together[row, :end], alone[0])
        assert not together[row, end:].any()


def test_a_shared_prefix_is_computed_once():
    model, cache = Adder(), KVCache()
    with no_grad():
        model(np.array([[5, 6, 7]]), np.ones((1, 3), bool), cache, 1)
    tails = np.array([[0, 8], [9, 9]])
    mask = np.array([[1, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
    shared = cache.select(np.array([0, 0]))
    found = generate(model, tails, mask, max_new_tokens=4, cache=shared)
    np.testing.assert_array_equal(found[0, 2:], expected([5, 6, 7, 8], 4)[4:])
    np.testing.assert_array_equal(found[1, 2:], expected([5, 6, 7, 9, 9], 4)[5:])
    assert model.calls[:2] == [(1, 3), (2, 2)]
    assert cache.length == 3
    again = generate(model, tails[:1], mask[:1], max_new_tokens=4, cache=cache.select(np.array([0])))
    np.testing.assert_array_equal(again[0], found[0])


def test_a_seed_decides_what_is_drawn():
    def model(ids, attention_mask, cache, logits_to_keep):
        return SimpleNamespace(data=np.zeros((len(ids), 1, VOCABULARY)))

    sampling = Sampling(temperature=1.0)

    def draw(seed):
        return generate(model, [[1], [1]], max_new_tokens=20, sampling=sampling, seed=seed)

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()
    assert (draw(None) != draw(None)).any()
    assert (draw(3)[0] != draw(3)[1]).any()  # rows draw for themselves


WRONG = {
    "floats": ({"input_ids": [[1.0, 2.0]]}, ShapeError,
               "generate: input_ids has shape (1, 2) and dtype float64, expected integers (batch, time)"),
    "nothing": ({"input_ids": np.zeros((1, 0), int)}, ShapeError, "with at least one token a row"),
    "three axes": ({"input_ids": np.zeros((1, 1, 1), int)}, ShapeError, "input_ids has shape (1, 1, 1)"),
    "a mask of another length": ({"attention_mask": [[1]]}, ShapeError,
                                 "generate: attention_mask has shape (1, 1), expected (1, 2)"),
    "right padding": ({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [1, 0]]}, ShapeError,
                      "attention_mask ends in padding in row 1; pad prompts on the left to generate from them"),
    "fewer than no tokens": ({"max_new_tokens": -1}, ConfigError,
                             "max_new_tokens is -1, expected a whole number of 0 or more"),
    "half a token": ({"max_new_tokens": 1.5}, ConfigError, "max_new_tokens is 1.5, expected a whole number"),
    "a seed below zero": ({"seed": -1}, ConfigError, "seed is -1, expected a whole number of 0 or more"),
    "stops that are no ids": ({"stop": ["</s>"]}, ConfigError, "stop holds '</s>', expected token ids"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_before_the_model_is_called(changes, kind, text):
    model = Adder()
    arguments = {"input_ids": [[3, 4]], "max_new_tokens": 4} | changes
    with pytest.raises(kind) as error:
        generate(model, arguments.pop("input_ids"), **arguments)
    assert text in str(error.value)
    assert isinstance(error.value, MiniloraError)
    assert model.calls == []
