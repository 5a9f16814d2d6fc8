"""A Llama's logits: against a slow float64 forward pass, under padding, in pieces, and a row at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from formats.gguf_builder import build_gguf
from models import reference
from models.double import load_double
from models.tiny import gguf_metadata, gguf_tensors, tiny_config, tiny_weights, write_folder, write_gguf

from minilora import AdapterError, ConfigError, MiniloraError, ShapeError, no_grad
from minilora.generate import KVCache
from minilora.lora import LoraConfig, adapter_layers, add_adapter, set_adapter
from minilora.models import load_model

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
KINDS = {
    "grouped heads": {},
    "tied head": {"tie_word_embeddings": True},
    "one key head": {"num_key_value_heads": 1, "num_hidden_layers": 3},
    "linear scaling": {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    # head_dim 10 and this base give pairs of the kept, the interpolated and the divided range.
    "llama3 scaling": {"rope_scaling": LLAMA3, "head_dim": 10, "rope_theta": 3000.0},
}
PADDED = np.array([[0, 0, 0, 9, 4, 30, 9, 2], [11, 7, 5, 3, 2, 1, 0, 36]])
MASK = np.array([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
# Numbers of about the size of the logits, computed along another path: the tiny model has 2 layers of
# 7 products, each of at most 28 terms, and every product rounds by at most 28 eps of its own terms.
ROUNDING = {np.dtype(np.float32): 2 * 7 * 28 * 2.0**-24, np.dtype(np.float64): 2 * 7 * 28 * 2.0**-53}


def agree(found, wanted, dtype=np.float32):
    size = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= ROUNDING[np.dtype(dtype)] * size


@pytest.fixture
def model(tmp_path):
    config = tiny_config()
    return load_model(write_folder(tmp_path, config, tiny_weights(config)))


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_logits_are_those_of_a_forward_pass_by_loops(tmp_path, changes):
    config = tiny_config(**changes)
    weights = tiny_weights(config)
    path = write_folder(tmp_path, config, weights)
    ids = np.array([[5, 0, 36, 7, 7, 21, 30, 2, 2, 14]])
    wanted = reference.logits(config, weights, ids[0])
    found = load_model(path)(ids)
    assert found.dtype == np.float32
    assert found.shape == (1, 10, 37)
    agree(found.data[0], wanted)
    # In float64 only the rounding of sine and cosine to float32 is left, which the loops do likewise.
    exact = reference.logits(config, weights, ids[0], trigonometry=np.float32)
    double = load_double(path)(ids)
    assert double.dtype == np.float64
    agree(double.data[0], exact, np.float64)


def test_llama3_scaling_meets_all_three_ranges_of_wavelengths():
    config = tiny_config(**KINDS["llama3 scaling"])
    scaled = np.array(reference.frequencies(config))
    ratio = np.array(reference.frequencies(config | {"rope_scaling": None})) / scaled
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(8)
    assert ((ratio > 1.01) & (ratio < 7.9)).any()


def test_rope_freqs_of_gguf_agree_with_loops_over_the_divided_frequencies(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    divisors = np.array([1.0, 1.75, 8.0], np.float32)
    path = tmp_path / "freqs.gguf"
    path.write_bytes(build_gguf(gguf_metadata(config), gguf_tensors(config, weights) | {"rope_freqs.weight": divisors}))
    angles = [f / float(d) for f, d in zip(reference.frequencies(config), divisors, strict=True)]
    ids = np.array([[5, 0, 36, 7, 7, 21]])
    agree(load_model(path)(ids).data[0], reference.logits(config, weights, ids[0], angles=angles))


def test_left_padding_changes_nothing_at_the_tokens_that_count(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    found = load_model(write_folder(tmp_path, config, weights))(PADDED, attention_mask=MASK).data
    agree(found[0, 3:], reference.logits(config, weights, PADDED[0, 3:]))
    agree(found[1], reference.logits(config, weights, PADDED[1]))


def test_right_padding_changes_nothing_at_the_tokens_that_count(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    model = load_model(write_folder(tmp_path, config, weights))
    ids, mask = PADDED.copy(), MASK.copy()
    ids[0], mask[0] = np.roll(ids[0], -3), np.roll(mask[0], -3)
    found = model(ids, attention_mask=mask).data
    agree(found[0, :5], reference.logits(config, weights, ids[0, :5]))
    agree(found[1], reference.logits(config, weights, ids[1]))


def test_what_stands_in_the_padding_does_not_matter(model):
    other = np.where(MASK == 0, 33, PADDED)
    found = model(PADDED, attention_mask=MASK).data, model(other, attention_mask=MASK).data
    np.testing.assert_array_equal(found[0][0, 3:], found[1][0, 3:])
    assert np.isfinite(found[0]).all()  # at padding that sees no token at all, too


def test_position_ids_are_the_positions_of_the_rotation(tmp_path):
    config = tiny_config()
    weights = tiny_weights(config)
    model = load_model(write_folder(tmp_path, config, weights))
    ids, positions = np.array([[4, 8, 15, 16]]), [3, 5, 6, 40]
    wanted = reference.logits(config, weights, ids[0], positions=positions)
    agree(model(ids, position_ids=np.array([positions])).data[0], wanted)
    agree(model(ids, position_ids=positions).data[0], wanted)  # one row of positions serves every row
    counted = model(ids).data
    np.testing.assert_array_equal(model(ids, position_ids=np.arange(4)).data, counted)
    assert np.abs(counted[0] - wanted).max() > 0.1


@pytest.mark.parametrize("cuts", [[8], [1] * 8, [3, 1, 4], [5, 3]])
def test_tokens_given_in_pieces_with_a_cache_agree_with_all_at_once(model, cuts):
    whole = model(PADDED, attention_mask=MASK).data
    cache, at = KVCache(), 0
    for cut in cuts:
        part = model(PADDED[:, at : at + cut], attention_mask=MASK[:, : at + cut], cache=cache).data
        at += cut
        agree(part, whole[:, at - cut : at])
        assert cache.length == at


def test_pieces_without_a_mask_agree_too(model):
    whole = model(PADDED).data
    cache = KVCache()
    model(PADDED[:, :5], cache=cache)
    agree(model(PADDED[:, 5:], cache=cache).data, whole[:, 5:])


def test_rows_of_a_batch_do_not_see_each_other(model):
    whole = model(PADDED, attention_mask=MASK).data
    for row in range(2):
        alone = model(PADDED[row : row + 1], attention_mask=MASK[row : row + 1]).data
        agree(alone[0, 3:], whole[row, 3:])
    changed = PADDED.copy()
    changed[1] = 17
    np.testing.assert_array_equal(model(changed, attention_mask=MASK).data[0], whole[0])


def test_no_token_sees_a_later_one(model):
    changed = PADDED.copy()
    changed[:, 5:] = 17
    found, wanted = model(changed).data, model(PADDED).data
    np.testing.assert_array_equal(found[:, :5], wanted[:, :5])
    assert np.abs(found[:, 5:] - wanted[:, 5:]).max() > 0.1


def test_logits_to_keep_computes_the_last_positions_alone(model):
    whole = model(PADDED, attention_mask=MASK).data
    for keep in (1, 3, 8, 99):
        kept = model(PADDED, attention_mask=MASK, logits_to_keep=keep)
        assert kept.shape == (2, min(keep, 8), 37)
        agree(kept.data, whole[:, -keep:])


@pytest.mark.parametrize("keep", [0, -1, -8])
def test_to_keep_no_logits_is_refused(model, keep):
    with pytest.raises(ConfigError) as caught:
        model(PADDED, logits_to_keep=keep)
    assert str(caught.value) == (
        f"model: logits_to_keep is {keep}, expected at least 1\n  leave it out for the logits of all positions"
    )


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_an_empty_batch_gives_empty_logits(model, shape):
    assert model(np.zeros(shape, int)).shape == (*shape, 37)


def test_ids_may_be_lists_and_any_kind_of_integer(model):
    wanted = model(PADDED).data
    for ids in (PADDED.tolist(), PADDED.astype(np.uint8), PADDED.astype(np.int32), np.asfortranarray(PADDED)):
        np.testing.assert_array_equal(model(ids).data, wanted)


def test_the_same_call_gives_the_same_bits_and_changes_nothing(model):
    before = model.frozen_sha256()
    ids, mask = PADDED.copy(), MASK.copy()
    np.testing.assert_array_equal(model(ids, mask).data, model(ids, mask).data)
    np.testing.assert_array_equal(ids, PADDED)
    np.testing.assert_array_equal(mask, MASK)
    assert model.frozen_sha256() == before


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_the_model_of_weights_with_its_product_added(tmp_path, rslora):
    config = tiny_config()
    weights = tiny_weights(config)
    model = load_double(write_folder(tmp_path, config, weights))
    settings = LoraConfig(
        r=4, lora_alpha=3, use_rslora=rslora, target_modules=["q_proj", "o_proj", "up_proj", "lm_head"]
    )
    add_adapter(model, settings)
    rng, merged = np.random.default_rng(0), dict(weights)
    for path, low_rank in adapter_layers(model, "default"):
        low_rank.B.data[...] = 0.2 * rng.standard_normal(low_rank.B.shape)
        merged[path] = weights[path] + 3 / (2 if rslora else 4) * (low_rank.A.data @ low_rank.B.data).T
    assert len([path for path in merged if merged[path] is not weights[path]]) == 3 * 2 + 1
    exact = reference.logits(config, merged, PADDED[1], trigonometry=np.float32)
    agree(model(PADDED[1:]).data[0], exact, np.float64)


def test_a_call_may_name_its_adapter(model):
    base = model(PADDED).data
    for name in ("one", "two"):
        add_adapter(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), name=name, seed=len(name))
    rng = np.random.default_rng(0)
    for _, tensor in model.named_parameters():
        tensor.data[...] = 0.2 * rng.standard_normal(tensor.shape)
    set_adapter(model, "one")
    one, two = model(PADDED).data, model(PADDED, adapters="two").data
    assert np.abs(one - two).max() > 0.1
    np.testing.assert_array_equal(model(PADDED).data, one)  # the call's choice was its own
    set_adapter(model, "two")
    np.testing.assert_array_equal(model(PADDED).data, two)
    set_adapter(model, None)
    np.testing.assert_array_equal(model(PADDED).data, base)


def test_threads_do_not_see_each_others_adapters(model):
    wanted = {}
    for name, size in (("one", 0.2), ("two", -0.2)):
        add_adapter(model, LoraConfig(r=2, target_modules="all-linear"), name=name)
        for _, low_rank in adapter_layers(model, name):
            low_rank.B.data[...] = size
        wanted[name] = model(PADDED, adapters=name).data
    wanted[None] = model(PADDED).data

    def many(name):
        return all(np.array_equal(model(PADDED, adapters=name).data, wanted[name]) for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(many, ["one", "two", None] * 4))


WRONG = {
    "ids without a batch": (
        lambda m: m([1, 2]), "model: input_ids has shape (2,), dtype int64; expected integers (batch, time)"),
    "ids of floats": (lambda m: m([[1.0, 2.0]]), "model: input_ids has shape (1, 2), dtype float64; expected integers"),
    "an id past the vocabulary": (lambda m: m([[1, 37]]), "ids holds 37, but weight has rows 0 to 36"),
    "a negative id": (lambda m: m([[1, -1]]), "ids holds -1, but weight has rows 0 to 36"),
    "a mask of another length": (
        lambda m: m([[1, 2]], attention_mask=[[1, 1, 1]]),
        "model: attention_mask has shape (1, 3), expected (1, 2) (batch, 0 cached + 2 new positions)"),
    "a mask without a batch": (
        lambda m: m([[1, 2]], attention_mask=[1, 1]), "attention_mask has shape (2,), expected (1, 2)"),
    "positions of another length": (
        lambda m: m([[1, 2]], position_ids=[[0, 1, 2]]),
        "model: position_ids has shape (1, 3), dtype int64; expected integers (1, 2) (batch, time)"),
    "positions that are no integers": (
        lambda m: m([[1, 2]], position_ids=[0.5, 1]), "position_ids has shape (2,), dtype float64; expected integers"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "text"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_by_name(model, call, text):
    with pytest.raises(ShapeError) as error:
        call(model)
    assert text in str(error.value)


def test_an_adapter_that_is_not_there_is_refused_by_name(model):
    text = "adapters: the model has no adapter named 'x'; add or load it first"
    with pytest.raises(AdapterError) as error:
        model(PADDED, adapters="x")
    assert text in str(error.value)
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
    for call in (lambda: model(PADDED, adapters="x"), lambda: model.loss(PADDED, PADDED, adapters="x")):
        with pytest.raises(AdapterError) as error:
            call()
        assert text in str(error.value)
    with pytest.raises(AdapterError, match="no adapter named"):
        model(PADDED, adapters=["default", "x"])


def test_a_cache_refuses_to_lose_gradients(model):
    add_adapter(model, LoraConfig(r=2, target_modules=["k_proj"]))
    with pytest.raises(MiniloraError) as error:
        model(PADDED, cache=KVCache())
    assert "a cache cannot carry gradients; call the model inside no_grad(), or without cache" in str(error.value)
    with no_grad():
        assert model(PADDED, cache=KVCache()).shape == (2, 8, 37)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_cache_of_other_rows_is_refused_and_stays_as_it_was(model, rows):
    cache = KVCache()
    with no_grad():
        model(PADDED, cache=cache)
        with pytest.raises(ShapeError) as error:
            model(np.ones((rows, 1), int), cache=cache)
        assert f"cache: holds 2 rows, but {rows} came; call select to repeat or drop rows" in str(error.value)
        assert cache.length == 8
        model(PADDED[:, :1], cache=cache)


def test_gguf_order_of_heads_also_agrees_with_the_loops(tmp_path):
    config = tiny_config(num_key_value_heads=4, head_dim=8)
    weights = tiny_weights(config, seed=5)
    model = load_model(write_gguf(tmp_path / "tiny.gguf", config, weights))
    agree(model(PADDED[1:]).data[0], reference.logits(config, weights, PADDED[1]))
