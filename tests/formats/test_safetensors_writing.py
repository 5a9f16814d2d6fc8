"""Whatever the memory layout of an array, the file holds its values; and the same arrays give the same bytes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.errors import MiniloraError
from minilora.formats import safetensors
from minilora.formats.safetensors import DTYPES, open_safetensors, read_safetensors, write_safetensors

CODES = sorted({code for name, (_, code) in DTYPES.items() if code and name != "BF16"})


@st.composite
def layouts(draw):
    """An array of any dtype and memory layout: permuted, strided, reversed, broadcast, swapped, read-only, empty."""
    dtype = np.dtype(draw(st.sampled_from(CODES)))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    base = [max(1, n * abs(step)) if n else 0 for n, step in zip(shape, steps, strict=True)]
    seed = draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).integers(0, 256, (*base, dtype.itemsize), dtype=np.uint8)
    raw = raw & 1 if dtype.kind == "b" else raw
    array = raw.view(dtype).reshape(base)
    array = array[tuple(slice(None, None, step) for step in steps)]
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if draw(st.booleans()):
        array = array.astype(dtype.newbyteorder(">"))  # keeps the order of axes in memory
    if draw(st.booleans()):
        array = np.asfortranarray(array) if array.ndim else array
    if draw(st.integers(0, 4)) == 0:
        array = np.broadcast_to(array, (2, *array.shape))
    array = np.asarray(array).view()
    array.flags.writeable = draw(st.booleans()) and array.flags.writeable
    return array


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


def same_bits(got, want):
    return (
        got.shape == want.shape
        and got.dtype == want.dtype.newbyteorder("=")
        and got.tobytes() == want.astype(want.dtype.newbyteorder("<")).tobytes()
    )


@settings(max_examples=4 * settings().max_examples)
@given(tensors=st.dictionaries(NAMES, layouts(), max_size=4), metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_any_layout_is_read_back_bit_for_bit(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "layout.safetensors"
    write_safetensors(path, tensors, metadata)
    arrays, found = read_safetensors(path)
    assert found == metadata
    assert arrays.keys() == tensors.keys()
    assert all(same_bits(arrays[name], tensors[name]) for name in tensors)
    once = path.read_bytes()
    write_safetensors(path, dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert path.read_bytes() == once
    assert int.from_bytes(once[:8], "little") % 8 == 0


def test_the_bytes_are_those_of_the_format(tmp_path):
    path = tmp_path / "t.safetensors"
    write_safetensors(
        path,
        {"b": np.ones(1, np.uint8), "a": np.ones((1, 2), np.float32), "c": np.array(2.0, np.float64)},
        {"z": "é", "format": "pt"},
    )
    header = (
        '{"__metadata__":{"format":"pt","z":"é"},'
        '"c":{"dtype":"F64","shape":[],"data_offsets":[0,8]},'
        '"a":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},'
        '"b":{"dtype":"U8","shape":[1],"data_offsets":[16,17]}}'
    ).encode()
    header += b" " * (-len(header) % 8)
    data = np.array(2.0, "<f8").tobytes() + np.ones(2, "<f4").tobytes() + b"\x01"
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + data


def test_every_tensor_is_aligned_to_its_width(tmp_path):
    path = tmp_path / "t.safetensors"
    write_safetensors(path, {code: np.ones(3, code) for code in CODES})
    file = open_safetensors(path)
    assert all(file.stored(name).flags.aligned for name in file.tensors)
    assert len(file.tensors) == len(CODES) == 13


def test_no_metadata_leaves_no_trace(tmp_path):
    path = tmp_path / "t.safetensors"
    write_safetensors(path, {})
    assert path.read_bytes() == (8).to_bytes(8, "little") + b"{}      "
    write_safetensors(path, {}, {})
    assert path.read_bytes()[8:] == b"{}      "


def test_the_callers_arrays_stay_as_they_were(tmp_path):
    array = np.arange(6.0, dtype=">f4").reshape(2, 3).T
    before = (array.dtype, array.strides, array.tobytes())
    write_safetensors(tmp_path / "t.safetensors", {"a": array})
    assert (array.dtype, array.strides, array.tobytes()) == before


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([None]),
        np.array([1j]),
        np.array([1], np.longdouble),
        np.array(["2020"], "M8[D]"),
        np.zeros(1, [("x", "f4")]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_a_dtype_the_format_lacks_is_refused_by_name(tmp_path, array):
    path = tmp_path / "t.safetensors"
    with pytest.raises(
        MiniloraError,
        match=rf"'x' has dtype {re.escape(str(array.dtype))}, which "
        r"safetensors cannot hold; convert it first, for example with",
    ):
        write_safetensors(path, {"x": array})
    assert not path.exists()


@pytest.mark.parametrize(
    ("tensors", "metadata", "reason"),
    [
        ({"__metadata__": np.ones(1)}, None, "a tensor may not be named '__metadata__'; rename it"),
        ({"\ud800": np.ones(1)}, None, r"a tensor's name is '\\ud800'; expected text that UTF-8 can hold"),
        ({1: np.ones(1)}, None, "a tensor's name is 1; expected text"),
        ({}, {"a": 1}, "metadata 'a' is 1; expected text"),
        ({}, {1: "a"}, "a key of the metadata is 1; expected text"),
        ({}, {"a": "\udfff"}, r"metadata 'a' is '\\udfff'; expected text"),
    ],
)
def test_a_bad_name_or_metadata_is_refused_and_nothing_written(tmp_path, tensors, metadata, reason):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(MiniloraError, match=reason):
        write_safetensors(path, tensors, metadata)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_over_the_formats_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    monkeypatch.setattr(safetensors, "MAX_HEADER", 1000)
    with pytest.raises(MiniloraError, match="names and metadata take 1032 bytes, the format allows 1000"):
        write_safetensors(path, {}, {"a": "x" * 1000})
    assert not path.exists()


def test_values_are_not_judged(tmp_path):
    path = tmp_path / "t.safetensors"
    odd = np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32)
    write_safetensors(path, {"odd": odd})
    assert read_safetensors(path)[0]["odd"].tobytes() == odd.tobytes()
    assert json.loads(path.read_bytes()[8:-16])["odd"]["shape"] == [4]
