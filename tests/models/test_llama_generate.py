"""A Llama continues prompts as it would without a cache, a batch or padding."""

from __future__ import annotations

import numpy as np
import pytest
from models.tiny import tiny_config, tiny_weights, write_folder

from minilora import AdapterError, ConfigError, ShapeError, no_grad
from minilora.generate import KVCache
from minilora.lora import LoraConfig, add_adapter, set_adapter
from minilora.models import load_model

PROMPTS = [[5, 0, 36, 7], [9], [30, 2, 21], [8, 8, 8, 8, 14]]


@pytest.fixture
def model(tmp_path):
    config = tiny_config()
    return load_model(write_folder(tmp_path, config, tiny_weights(config)))


def padded(rows, pad=0):
    length = max(map(len, rows))
    ids = np.array([[pad] * (length - len(row)) + row for row in rows])
    return ids, np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows])


def greedy(model, prompt, count, stop=(), **options):
    """The most likely token of the whole text so far, one forward pass a token, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        if len(ids) > len(prompt) and ids[-1] in stop:
            break
        ids.append(int(model(np.array([ids]), **options).data[0, -1].argmax()))
    return ids


def test_greedy_tokens_are_the_most_likely_ones_step_by_step(model):
    for prompt in PROMPTS:
        found = model.generate(np.array([prompt]), max_new_tokens=20, stop=())
        np.testing.assert_array_equal(found, [greedy(model, prompt, 20)])


def test_a_padded_batch_gives_what_its_rows_give_alone(model):
    ids, mask = padded(PROMPTS)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=20, stop=())
    for row, prompt in enumerate(PROMPTS):
        assert list(found[row, ids.shape[1] :]) == greedy(model, prompt, 20)[len(prompt) :]


def test_rows_end_at_the_models_own_end_tokens_and_are_filled_with_the_first(model):
    # Make tokens that the rows really produce the end tokens: one late in row 0, one early in row 1.
    free = model.generate(*padded(PROMPTS), max_new_tokens=20, stop=())[:, 5:]
    ends = tuple(int(t) for t in (free[0, 12], free[1, 3]))
    object.__setattr__(model.config, "eos_token_ids", ends)
    found = model.generate(*padded(PROMPTS), max_new_tokens=20)[:, 5:]
    lengths = []
    for row, prompt in enumerate(PROMPTS):
        wanted = greedy(model, prompt, 20, stop=ends)[len(prompt) :]
        assert list(found[row, : len(wanted)]) == wanted
        assert (found[row, len(wanted) :] == ends[0]).all()
        lengths.append(len(wanted))
    assert min(lengths) < max(lengths)
    assert found.shape[1] == max(lengths)


def test_rows_that_stop_at_different_times_agree_with_rows_alone(model):
    prompts = [[int(t)] for t in range(12)]
    free = model.generate(np.array(prompts), max_new_tokens=12, stop=())
    stop = set(free[:6, 4].tolist())  # ends six rows at the fourth token, and others where they happen on one
    found = model.generate(np.array(prompts), max_new_tokens=12, stop=stop)
    for row, prompt in enumerate(prompts):
        wanted = greedy(model, prompt, 12, stop=stop)
        assert list(found[row, : len(wanted)]) == wanted


def test_a_seed_decides_what_is_drawn(model):
    ids, mask = padded(PROMPTS)

    def draw(seed, **settings):
        return model.generate(ids, mask, 15, temperature=1.5, seed=seed, stop=(), **settings)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    np.testing.assert_array_equal(draw(1, top_k=1), model.generate(ids, mask, 15, stop=()))
    np.testing.assert_array_equal(draw(1, top_p=1e-6), model.generate(ids, mask, 15, stop=()))


def test_a_shared_prefix_gives_what_whole_prompts_give(model):
    prefix, cache = [5, 0, 36, 7, 11, 2], KVCache()
    with no_grad():
        model(np.array([prefix]), cache=cache)
    tails, mask = padded([[4], [9, 8]])
    whole = np.concatenate([np.ones((2, len(prefix)), int), mask], axis=1)
    shared = cache.select(np.array([0, 0]))
    found = model.generate(tails, whole, max_new_tokens=10, stop=(), cache=shared)
    for row, tail in enumerate(([4], [9, 8])):
        assert list(found[row, 2:]) == greedy(model, prefix + tail, 10)[len(prefix) + len(tail) :]
    assert cache.length == len(prefix)


def test_generation_uses_the_adapter_of_the_call_and_leaves_no_tape(model):
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear"), name="one")
    set_adapter(model, None)
    rng = np.random.default_rng(0)
    for _, tensor in model.named_parameters():
        tensor.data[...] = 0.3 * rng.standard_normal(tensor.shape)
    prompt = PROMPTS[0]
    base = model.generate(np.array([prompt]), max_new_tokens=10, stop=())
    found = model.generate(np.array([prompt]), max_new_tokens=10, stop=(), adapters="one")
    assert list(found[0]) == greedy(model, prompt, 10, adapters="one")
    assert (found != base).any()
    with pytest.raises(AdapterError, match="no adapter named 'two'"):
        model.generate(np.array([prompt]), adapters="two")


def test_dropout_is_off_while_generating_in_evaluation(model):
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    for _, tensor in model.named_parameters():
        tensor.data[...] = 0.2
    model.eval()
    found = [model.generate(np.array(PROMPTS[:1]), max_new_tokens=8, stop=()) for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_what_does_not_fit_is_refused_by_name(model):
    cases = [
        (lambda: model.generate([[1, 2]], [[1, 0]]), ShapeError, "attention_mask ends in padding in row 0"),
        (lambda: model.generate([[1, 99]]), ShapeError, "ids holds 99, but weight has rows 0 to 36"),
        (lambda: model.generate([[]]), ShapeError, "with at least one token a row"),
        (lambda: model.generate([[1]], temperature=-1), ConfigError, "temperature is -1"),
        (lambda: model.generate([[1]], top_k=0), ConfigError, "top_k is 0"),
        (lambda: model.generate([[1]], top_p=2), ConfigError, "top_p is 2"),
        (lambda: model.generate([[1]], max_new_tokens=-1), ConfigError, "max_new_tokens is -1"),
    ]
    for call, kind, text in cases:
        with pytest.raises(kind) as error:
            call()
        assert text in str(error.value)
