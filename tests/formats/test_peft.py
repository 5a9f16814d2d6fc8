"""PEFT's adapter folder as plain data: strict about bytes, exact about layout, the same bytes every time."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import FormatError, MiniloraError
from minilora.formats.peft import MAX_CONFIG, parse_json, read_peft, tensor_name, write_peft
from minilora.formats.safetensors import read_safetensors, write_safetensors

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "q_proj"]}


def factors(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        path: {"A": rng.standard_normal((5, 2)).astype(dtype), "B": rng.standard_normal((2, 3)).astype(dtype)}
        for path in ("model.layers.1.v_proj", "model.layers.0.q_proj")
    }


def test_what_is_written_is_read_back_in_our_orientation(tmp_path):
    wanted = factors()
    write_peft(tmp_path / "a", CONFIG, wanted, {"note": "x"})
    read = read_peft(tmp_path / "a")
    assert read.metadata == {"format": "pt", "note": "x"}
    assert read.config == {**CONFIG, "target_modules": ["q_proj", "v_proj"]}
    assert read.others == {}
    assert read.factors.keys() == wanted.keys()
    for path, parts in wanted.items():
        for part, array in parts.items():
            got = read.factors[path][part]
            assert np.array_equal(got, array)
            assert got.flags.c_contiguous
            assert got.flags.owndata
            assert got.flags.writeable


def test_the_file_holds_pefts_names_and_layout(tmp_path):
    write_peft(tmp_path, CONFIG, factors(), {"format": "of the caller"})
    tensors, metadata = read_safetensors(tmp_path / "adapter_model.safetensors")
    assert metadata["format"] == "pt"
    assert {name: array.shape for name, array in tensors.items()} == {
        "base_model.model.model.layers.0.q_proj.lora_A.weight": (2, 5),
        "base_model.model.model.layers.0.q_proj.lora_B.weight": (3, 2),
        "base_model.model.model.layers.1.v_proj.lora_A.weight": (2, 5),
        "base_model.model.model.layers.1.v_proj.lora_B.weight": (3, 2),
    }


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    turned = {
        path: {part: np.asfortranarray(a) for part, a in reversed(parts.items())} for path, parts in factors().items()
    }
    write_peft(tmp_path / "a", CONFIG, factors(), {"x": "1", "y": "2"})
    write_peft(
        tmp_path / "b",
        dict(reversed({**CONFIG, "target_modules": ["q_proj", "v_proj"]}.items())),
        dict(reversed(turned.items())),
        {"y": "2", "x": "1"},
    )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "adapter_config.json").read_text("utf-8")
    assert list(json.loads(text)) == sorted(CONFIG)
    assert text.startswith('{\n  "lora_alpha": 4,\n')


def test_the_order_of_pattern_keys_is_kept_since_the_first_match_wins(tmp_path):
    write_peft(tmp_path, {**CONFIG, "rank_pattern": {"b": 1, "a": 2}}, factors())
    assert list(read_peft(tmp_path).config["rank_pattern"]) == ["b", "a"]


def test_writing_again_replaces_both_files_and_leaves_others_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    write_peft(tmp_path, {**CONFIG, "r": 3}, {"x": factors()["model.layers.0.q_proj"]})
    write_peft(tmp_path, CONFIG, factors())
    assert sorted(os.listdir(tmp_path)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert read_peft(tmp_path).config["r"] == 2
    assert len(read_peft(tmp_path).factors) == 2


def test_dtypes_stay_those_of_the_file_but_for_bfloat16(tmp_path):
    write_peft(tmp_path, CONFIG, {})
    write_safetensors(
        tmp_path / "adapter_model.safetensors",
        {
            tensor_name("q", "A"): np.ones((2, 3), np.float16),
            tensor_name("q", "B"): np.ones((4, 2), np.int32),
        },
    )
    read = read_peft(tmp_path).factors["q"]
    assert (read["A"].dtype, read["B"].dtype) == (np.float16, np.int32)
    assert (read["A"].shape, read["B"].shape) == ((3, 2), (2, 4))


@pytest.mark.parametrize(
    "name",
    [
        "q_proj.lora_A.weight",  # no prefix
        "base_model.model.q_proj.lora_A",
        "base_model.model.q_proj.lora_embedding_A",
        "base_model.model.q_proj.lora_magnitude_vector",
        "base_model.model.q_proj.base_layer.bias",
        "../../etc/passwd",
        "",
    ],
)
def test_tensors_of_other_names_are_handed_over_as_they_are(tmp_path, name):
    write_peft(tmp_path, CONFIG, factors())
    tensors, _ = read_safetensors(tmp_path / "adapter_model.safetensors")
    write_safetensors(tmp_path / "adapter_model.safetensors", {**tensors, name: np.ones((2, 5), np.float32)})
    read = read_peft(tmp_path)
    assert list(read.others) == [name]
    assert read.others[name].shape == (2, 5)


def test_a_factor_with_other_than_two_axes_is_no_factor(tmp_path):
    write_peft(tmp_path, CONFIG, {})
    name = tensor_name("conv", "A")
    write_safetensors(tmp_path / "adapter_model.safetensors", {name: np.ones((2, 3, 1, 1), np.float32)})
    assert list(read_peft(tmp_path).others) == [name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"r": 1, "r": 1}', r"has the key 'r' twice"),
        (b'{"a": {"b": 1, "b": 2}}', r"has the key 'b' twice"),
        (b'{"lora_alpha": NaN}', r"holds NaN, which is not JSON"),
        (b'{"lora_alpha": -Infinity}', r"holds -Infinity, which is not JSON"),
        (b'{"r": 8', r"not JSON: .* at line 1, column \d+; the file is damaged"),
        (b"", r"not JSON"),
        (b"[1]", r"holds a JSON list, expected an object of settings"),
        (b"null", r"holds a JSON NoneType"),
        (b'{"r": "\xff"}', r"not UTF-8 at byte 7"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", r"nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", r"the file is damaged"),
    ],
)
def test_a_config_that_is_not_plain_json_is_refused(tmp_path, content, message):
    write_peft(tmp_path, CONFIG, factors())
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_peft(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "adapter_config.json"))


def test_a_config_that_is_too_large_is_refused_unread(tmp_path):
    write_peft(tmp_path, CONFIG, factors())
    with open(tmp_path / "adapter_config.json", "r+b") as file:
        file.truncate(MAX_CONFIG + 1)
    with pytest.raises(FormatError, match=r"adapter_config.json: 4194305 bytes, expected at most 4194304"):
        read_peft(tmp_path)


def test_a_pickle_is_refused_with_a_hint(tmp_path):
    write_peft(tmp_path, CONFIG, factors())
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(FormatError, match=r"adapter_model.bin, which is a pickle and could run any code.*\n.*PEFT"):
        read_peft(tmp_path)


def test_a_folder_without_the_files_says_what_it_holds(tmp_path):
    (tmp_path / "adapters.safetensors").touch()
    with pytest.raises(
        FormatError,
        match=r"no adapter_config.json and no adapter_model.safetensors here \(found 'adapters.safetensors'\)",
    ):
        read_peft(tmp_path)
    with pytest.raises(
        MiniloraError, match=r"nowhere: no such folder; expected a folder that holds adapter_config.json"
    ):
        read_peft(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=r"this is a file; expected a folder .*: give the folder's name"):
        read_peft(tmp_path / "adapters.safetensors")
    with pytest.raises(MiniloraError, match=r"not a usable path"):
        read_peft("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    write_peft(tmp_path, CONFIG, factors())
    (tmp_path / "adapter_config.json").unlink()
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(FormatError, match=r"not a regular file"):
        read_peft(tmp_path)


def test_a_truncated_tensor_file_is_refused_at_every_length(tmp_path):
    write_peft(tmp_path, CONFIG, factors())
    path = tmp_path / "adapter_model.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_peft(tmp_path)


def test_a_number_that_json_lacks_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_peft(tmp_path, {**CONFIG, "lora_alpha": float("nan")}, factors())
    assert not (tmp_path / "adapter_config.json").exists()


def test_a_place_that_cannot_be_written_is_a_minilora_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MiniloraError, match=r"cannot make this folder: .*; choose another path"):
        write_peft(tmp_path / "file" / "a", CONFIG, factors())


@given(st.binary(max_size=60) | st.text('{}[]",:0123456789.eE+-nulltrefasINy\\ud8', max_size=60).map(str.encode))
def test_any_bytes_parse_as_json_does_or_raise_a_format_error(data):
    try:
        parsed = parse_json(data, "config")
    except FormatError as caught:
        parsed = caught
    assert str(parsed).startswith("config: ") if isinstance(parsed, FormatError) else parsed == json.loads(data)
