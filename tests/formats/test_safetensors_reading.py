"""A safetensors file is read as the format says, or refused with a reason."""

from __future__ import annotations

import gc
import json
import os
import random
import tracemalloc

import numpy as np
import pytest
from formats.safetensors_builder import entry, safetensors_bytes, small_file

from minilora.errors import FormatError, MiniloraError
from minilora.formats.safetensors import DTYPES, SafetensorsFile, open_safetensors, read_safetensors

ONE = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'


def one(dtype='"U8"', shape="[1]", offsets="[0,1]", data=b"x"):
    """A file of one tensor `a` whose entry is given as JSON text."""
    return safetensors_bytes(f'{{"a":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}', data)


def several(*entries, data):
    return safetensors_bytes({f"t{i}": e for i, e in enumerate(entries)}, data)


BAD = {
    # the eight bytes before the header
    "an empty file": (b"", "the file is empty"),
    "one byte": (b"{", "1 bytes, expected at least 8"),
    "seven bytes": (b"\x00" * 7, "7 bytes, expected at least 8"),
    "a header of no bytes": (b"\x00" * 8, "header begins with '', expected '{'"),
    "a header longer than the file": (safetensors_bytes(b"{}", length=3), "header length is 3 bytes, but only 2"),
    "a header that ends with the address space": (safetensors_bytes(b"{}", length=2**64 - 1), "at most 100000000"),
    "a header whose length would wrap": (safetensors_bytes(b"{}", length=2**64 - 8), "at most 100000000"),
    "a header one byte over the limit": (safetensors_bytes(b"{}", length=100_000_001), "at most 100000000"),
    "a header at the limit that is not there": (safetensors_bytes(b"{}", length=100_000_000), "but only 2 follow"),
    "a big-endian length": ((2).to_bytes(8, "big") + b"{}", "at most 100000000"),
    "a pickle": (b"\x80\x02}q\x00(X\x06\x00\x00\x00weightq\x01K\x01u.", "this is no safetensors file"),
    "a zip file": (b"PK\x03\x04" + b"\x00" * 60, "header length is 67324752 bytes, but only 56 follow"),
    "a GGUF file": (b"GGUF\x03\x00\x00\x00" + b"\x00" * 60, "at most 100000000"),
    # JSON
    "an array": (safetensors_bytes(b"[]"), "expected '{'"),
    "a byte-order mark": (safetensors_bytes(b"\xef\xbb\xbf{}"), "expected '{'"),
    "a space before the header": (safetensors_bytes(b" {}"), "expected '{'"),
    "a newline after the header": (safetensors_bytes(b"{}\n"), "nothing after it but spaces"),
    "a NUL after the header": (safetensors_bytes(b"{}\x00\x00"), "nothing after it but spaces"),
    "a tab as padding": (safetensors_bytes(b"{}  \t"), "nothing after it but spaces"),
    "two objects": (safetensors_bytes(b"{}{}"), "not JSON: Extra data"),
    "an open object": (safetensors_bytes(b'{"a":{}'), "not JSON"),
    "only an opening brace": (safetensors_bytes(b"{"), "header ends with '{'"),
    "a comma at the end": (safetensors_bytes(b'{"__metadata__":{},}'), "not JSON"),
    "single quotes": (safetensors_bytes(b"{'a':1}"), "not JSON"),
    "a comment": (safetensors_bytes(b"{/**/}"), "not JSON"),
    "a control character in a string": (safetensors_bytes(b'{"__metadata__":{"a":"\x01"}}'), "not JSON"),
    "a bad escape": (safetensors_bytes(rb'{"__metadata__":{"a":"\x41"}}'), "not JSON"),
    "NaN": (safetensors_bytes(b'{"__metadata__":{"a":NaN}}'), "holds NaN"),
    "Infinity": (one(shape="[Infinity]"), "holds Infinity"),
    "minus Infinity": (one(shape="[-Infinity]"), "holds -Infinity"),
    "no UTF-8": (safetensors_bytes(b'{"\xff":{' + ONE.encode() + b"}}", b"x"), "not UTF-8 at byte 10"),
    "an overlong encoding": (safetensors_bytes(b'{"\xc0\xaf":{' + ONE.encode() + b"}}", b"x"), "not UTF-8"),
    "an encoded surrogate": (safetensors_bytes(b'{"\xed\xa0\x80":{' + ONE.encode() + b"}}", b"x"), "not UTF-8"),
    "half a surrogate pair in a name": (safetensors_bytes(rb'{"\ud800":{' + ONE.encode() + b"}}", b"x"), "surrogate"),
    "half a surrogate pair in a metadata key": (safetensors_bytes(rb'{"__metadata__":{"\udc00":"x"}}'), "surrogate"),
    "half a surrogate pair in metadata": (safetensors_bytes(rb'{"__metadata__":{"a":"\ud800"}}'), "surrogate"),
    "brackets nested a million deep": (safetensors_bytes(b'{"a":' + b"[" * 10**6 + b"}"), "nested too deeply"),
    "objects nested a hundred thousand deep": (safetensors_bytes(b'{"a":' * 10**5 + b"}" * 10**5), "header"),
    "a name twice": (safetensors_bytes(f'{{"a":{{{ONE}}},"a":{{{ONE}}}}}', b"x"), "the key 'a' twice"),
    "a name twice, once escaped": (safetensors_bytes(rf'{{"a":{{{ONE}}},"\u0061":{{{ONE}}}}}', b"x"), "'a' twice"),
    "a field twice": (safetensors_bytes(f'{{"a":{{{ONE},"dtype":"U8"}}}}', b"x"), "'dtype' twice"),
    "metadata twice": (safetensors_bytes('{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' twice"),
    "a metadata key twice": (safetensors_bytes('{"__metadata__":{"k":"1","k":"1"}}'), "'k' twice"),
    # metadata
    "metadata that is a list": (safetensors_bytes({"__metadata__": []}), "__metadata__ is [], expected an object"),
    "metadata that is text": (safetensors_bytes({"__metadata__": "x"}), "__metadata__ is 'x'"),
    "a number in metadata": (safetensors_bytes({"__metadata__": {"a": 1}}), "expected an object of strings"),
    "null in metadata": (safetensors_bytes({"__metadata__": {"a": None}}), "expected an object of strings"),
    "an object in metadata": (safetensors_bytes({"__metadata__": {"a": {}}}), "expected an object of strings"),
    "metadata that is a tensor": (safetensors_bytes({"__metadata__": entry("U8", [1], [0, 1])}, b"x"), "strings"),
    # entries
    "an entry that is null": (safetensors_bytes({"a": None}), "tensor 'a': entry is None, expected exactly dtype"),
    "an entry that is a list": (safetensors_bytes({"a": ["U8", [1], [0, 1]]}, b"x"), "expected exactly dtype"),
    "an entry that is empty": (safetensors_bytes({"a": {}}), "entry is {}, expected exactly dtype"),
    "no dtype": (safetensors_bytes({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x"), "expected exactly dtype"),
    "no shape": (safetensors_bytes({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x"), "expected exactly dtype"),
    "no offsets": (safetensors_bytes({"a": {"dtype": "U8", "shape": [1]}}, b"x"), "expected exactly dtype"),
    "a fourth field": (safetensors_bytes(f'{{"a":{{{ONE},"strides":[1]}}}}', b"x"), "expected exactly dtype"),
    "an unknown dtype": (one('"F128"'), "dtype is 'F128', expected one of BOOL, F4"),
    "a dtype in small letters": (one('"u8"'), "dtype is 'u8'"),
    "a dtype that is a number": (one("8"), "dtype is 8"),
    "a dtype that is a list": (one('["U8"]'), "dtype is ['U8']"),
    "a dtype that is null": (one("null"), "dtype is None"),
    # shapes
    "a negative size": (one(shape="[-1]"), "shape is [-1], expected at most 64 integers of 0 or more"),
    "two negative sizes": (one(shape="[-1,-1]"), "shape is [-1, -1]"),
    "minus zero": (one(shape="[-0]", offsets="[0,0]", data=b""), "shape is [-0.0]"),
    "a fraction": (one(shape="[1.5]"), "shape is [1.5]"),
    "a whole number as a float": (one(shape="[1.0]"), "shape is [1.0]"),
    "an exponent": (one(shape="[1e0]"), "shape is [1.0]"),
    "true as a size": (one(shape="[true]"), "shape is [True]"),
    "text as a size": (one(shape='["1"]'), "shape is ['1']"),
    "null as a size": (one(shape="[null]"), "shape is [None]"),
    "a list as a size": (one(shape="[[1]]"), "shape is [[1]]"),
    "a shape that is a number": (one(shape="1"), "shape is 1"),
    "a shape that is null": (one(shape="null"), "shape is None"),
    "a shape that is an object": (one(shape="{}"), "shape is {}"),
    "65 axes": (one(shape=json.dumps([1] * 65)), "expected at most 64 integers"),
    "a size of 2**64": (
        one(shape="[0,18446744073709551616]", offsets="[0,0]", data=b""),
        "shape is [0, 18446744073709551616]",
    ),
    "a size of 4,000 digits": (one(shape="[" + "9" * 4000 + "]"), "shape is [inf]"),
    "a size of a million digits": (one(shape="[" + "9" * 10**6 + "]"), "shape is [inf]"),
    "a product that wraps to one": (one(shape="[9223372036854775808,2,1]"), "fewer than 2**63 bytes"),
    "a product that wraps to zero": (one(shape="[4294967296,4294967296]", offsets="[0,0]", data=b""), "2**63 bytes"),
    "an empty shape that NumPy cannot hold": (
        one(shape="[18446744073709551615,2,0]", offsets="[0,0]", data=b""),
        "2**63",
    ),
    "a shape too small for its bytes": (one(offsets="[0,2]", data=b"xx"), "hold 2 bytes, but U8 of shape [1] takes 1"),
    "a shape too large for its bytes": (one(shape="[3]"), "hold 1 bytes, but U8 of shape [3] takes 3"),
    "a dtype too wide for its bytes": (one('"F32"'), "but F32 of shape [1] takes 4"),
    "half a byte": (one('"F4"'), "but F4 of shape [1] takes 0.5"),
    "six bits in a byte": (one('"F6_E2M3"'), "takes 0.75"),
    # offsets
    "one offset": (one(offsets="[0]"), "data_offsets is [0], expected two integers of 0 or more"),
    "three offsets": (one(offsets="[0,1,1]"), "data_offsets is [0, 1, 1]"),
    "offsets that are text": (one(offsets='"01"'), "data_offsets is '01'"),
    "negative offsets": (one(offsets="[-1,0]"), "data_offsets is [-1, 0]"),
    "a fractional offset": (one(offsets="[0,1.0]"), "data_offsets is [0, 1.0]"),
    "false as an offset": (one(offsets="[false,1]"), "data_offsets is [False, 1]"),
    "an offset that is minus zero": (one(offsets="[-0,1]"), "data_offsets is [-0.0, 1]"),
    "offsets the wrong way round": (one(offsets="[1,0]"), "hold -1 bytes"),
    "offsets over 64 bits": (one(offsets="[0,18446744073709551617]"), "expected two integers"),
    "offsets beyond the file": (
        one(shape="[9]", offsets="[0,9]"),
        "end at byte 70, but the file has 62: the file is cut",
    ),
    "offsets of 2**62 bytes": (one(shape=f"[{2**62}]", offsets=f"[0,{2**62}]"), "the file is cut short"),
    # the order of tensors
    "a hole at the start": (
        one(offsets="[1,2]", data=b"xx"),
        "'a' begins at 1 and leaves a hole before it, expected 0",
    ),
    "a hole in the middle": (several(entry("U8", [1], [0, 1]), entry("U8", [1], [2, 3]), data=b"xyz"), "leaves a hole"),
    "an overlap": (several(entry("U8", [2], [0, 2]), entry("U8", [2], [1, 3]), data=b"xyz"), "overlaps"),
    "the same bytes twice": (several(entry("U8", [2], [0, 2]), entry("U8", [2], [0, 2]), data=b"xy"), "overlaps"),
    "a tensor inside another": (several(entry("U8", [4], [0, 4]), entry("U8", [1], [1, 2]), data=b"wxyz"), "overlaps"),
    "an empty tensor inside another": (
        several(entry("U8", [2], [0, 2]), entry("U8", [0], [1, 1]), data=b"xy"),
        "overlaps",
    ),
    "an empty tensor beyond the end": (several(entry("U8", [1], [0, 1]), entry("U8", [0], [9, 9]), data=b"x"), "hole"),
    "bytes after the last tensor": (
        one(data=b"xy"),
        "end at byte 62, but the file has 63: the rest belongs to no tensor",
    ),
    "bytes but no tensor": (safetensors_bytes("{}", b"x"), "the rest belongs to no tensor"),
    "a missing last byte": (small_file()[:-1], "the file is cut short"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_the_reason(tmp_path, case):
    content, reason = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (open_safetensors, read_safetensors):
        if not content and read is read_safetensors:
            reason = "0 bytes, expected at least 8"
        with pytest.raises(FormatError) as caught:
            read(path)
        message = str(caught.value)
        assert reason in message
        assert str(path) in message
        assert len(message) < 700 + len(str(path))


def test_there_are_at_least_seventy_bad_files():
    assert len(BAD) >= 70
    assert len({content for content, _ in BAD.values()}) == len(BAD)


def test_every_prefix_of_a_file_is_refused(tmp_path):
    path, whole = tmp_path / "cut.safetensors", small_file()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        for read in (open_safetensors, read_safetensors):
            with pytest.raises(FormatError):
                read(path)
    path.write_bytes(whole)
    assert len(open_safetensors(path).tensors) == 5


LIKELY = b'{}[]",:0123456789-.eE \\\x00\xff'


def test_a_mutated_file_is_read_in_full_or_refused():
    whole, rng, accepted = small_file(), random.Random(7), 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.choice(LIKELY + bytes([rng.randrange(256)]))
        try:
            file = SafetensorsFile("mutated", bytes(content))
        except FormatError:
            continue
        accepted += 1
        claimed = sum(info.end - info.begin for info in file.tensors.values())
        assert 8 + int.from_bytes(content[:8], "little") + claimed == len(content)
        for name, info in file.tensors.items():
            if DTYPES[info.dtype][1]:
                assert file.array(name).shape == info.shape
    assert accepted > 100  # of values and names: the mutations reach both sides of the check


def test_every_kind_of_tensor_is_read(tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(small_file())
    file, (arrays, metadata) = open_safetensors(path), read_safetensors(path)
    data = bytes(range(64, 102))
    assert file.metadata == metadata == {"format": "pt", "naïve": "☃"}
    assert list(file.tensors) == ["weight", "scalar", "empty", "half", "mask"]
    assert file.tensors["weight"].begin == len(small_file()) - 40
    for read in (file.array, arrays.__getitem__):
        np.testing.assert_array_equal(read("weight"), np.frombuffer(data, "<f4", 6).reshape(2, 3), strict=True)
        np.testing.assert_array_equal(read("scalar"), np.frombuffer(data, "<f8", 1, 24).reshape(()), strict=True)
        np.testing.assert_array_equal(read("empty"), np.empty((0, 5), np.int64), strict=True)
        np.testing.assert_array_equal(read("mask"), [True, False], strict=True)
        # bfloat16 is the upper half of a float32: two zero bytes before each two of the file.
        wide = b"".join(b"\0\0" + data[i : i + 2] for i in (32, 34, 36))
        np.testing.assert_array_equal(read("half"), np.frombuffer(wide, "<f4"), strict=True)
    np.testing.assert_array_equal(file.stored("half"), np.frombuffer(data, "<u2", 3, 32), strict=True)


@pytest.mark.parametrize("dtype", [name for name, (_, code) in DTYPES.items() if code])
def test_each_numpy_dtype_is_read_bit_for_bit(tmp_path, dtype):
    bits, code = DTYPES[dtype]
    raw = np.random.default_rng(3).integers(0, 256, bits // 8 * 7, dtype=np.uint8).tobytes()
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes({"t": entry(dtype, [7], [0, len(raw)])}, raw))
    file = open_safetensors(path)
    assert file.stored("t").tobytes() == raw
    assert file.stored("t").dtype == np.dtype(code)
    assert not file.stored("t").flags.writeable
    assert file.array("t").dtype.isnative
    assert file.array("t").flags.aligned


@pytest.mark.parametrize("dtype", [name for name, (_, code) in DTYPES.items() if not code])
def test_a_dtype_that_numpy_lacks_is_listed_but_named_when_asked_for(tmp_path, dtype):
    size = DTYPES[dtype][0]
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes({"eight\n": entry(dtype, [8], [0, size])}, b"x" * size))
    file = open_safetensors(path)
    assert file.tensors["eight\n"].dtype == dtype
    for read in (file.array, file.stored):
        with pytest.raises(FormatError, match=rf"tensor 'eight\\n' has dtype {dtype}, which minilora cannot"):
            read("eight\n")
    with pytest.raises(FormatError, match="cannot compute with"):
        read_safetensors(path)


def test_a_mapped_array_is_read_only_and_a_read_one_is_owned(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(small_file())
    view = open_safetensors(path).array("weight")
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    arrays, _ = read_safetensors(path)
    for array in arrays.values():
        assert array.flags.writeable
        assert array.flags.owndata
        assert array.flags.c_contiguous


def test_a_mapping_outlives_its_file_and_its_reader(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(small_file())
    view = open_safetensors(path).array("weight")
    before = view.copy()
    gc.collect()
    os.unlink(path)
    np.testing.assert_array_equal(view, before)


def test_an_unaligned_tensor_is_copied_to_aligned_memory(tmp_path):
    path = tmp_path / "t.safetensors"
    header = json.dumps({"b": entry("U8", [1], [0, 1]), "f": entry("F64", [2], [1, 17])})
    header += " " * (-len(header) % 8)
    path.write_bytes(safetensors_bytes(header, b"\x07" + np.array([1.5, -2.5], "<f8").tobytes()))
    file = open_safetensors(path)
    assert not file.stored("f").flags.aligned
    assert file.array("f").flags.aligned
    np.testing.assert_array_equal(file.array("f"), [1.5, -2.5])
    assert read_safetensors(path)[0]["f"].flags.aligned


@pytest.mark.parametrize("header", ["{}", '{"__metadata__":null}', '{"__metadata__":{}}', "{\n \t}     "])
def test_a_file_without_tensors_is_valid(tmp_path, header):
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes(header))
    assert open_safetensors(path).tensors == {}
    assert read_safetensors(path) == ({}, {})


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "nul\0", "new\nline", "\x1b[2J", "\u202egnp.exe", "☃"])
def test_a_name_is_data_and_escaped_when_printed(tmp_path, name):
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors_bytes({name: entry("U8", [1], [0, 1])}, b"x"))
    assert open_safetensors(path).array(name).tobytes() == b"x"
    path.write_bytes(safetensors_bytes({name: entry("U8", [2], [0, 1])}, b"x"))
    with pytest.raises(FormatError) as caught:
        open_safetensors(path)
    assert str(caught.value).isprintable()


def test_an_unknown_tensor_is_answered_with_the_names_there_are(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(small_file())
    with pytest.raises(FormatError, match=r"no tensor 'wait'; the file holds 5: 'weight', 'scalar'"):
        open_safetensors(path).array("wait")


def test_empty_tensors_may_share_a_place(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(
        several(entry("U8", [0], [1, 1]), entry("U8", [1], [0, 1]), entry("F64", [3, 0], [0, 0]), data=b"x")
    )
    file = open_safetensors(path)
    assert [file.array(name).shape for name in ("t0", "t1", "t2")] == [(0,), (1,), (3, 0)]


def test_a_missing_file_and_a_folder_and_a_pipe_are_named(tmp_path):
    with pytest.raises(MiniloraError, match=r"a\.safetensors: no such file; check the name"):
        open_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(MiniloraError, match=r"no such file; there is no folder .*nowhere"):
        read_safetensors(tmp_path / "nowhere" / "a.safetensors")
    for read in (open_safetensors, read_safetensors):
        with pytest.raises(FormatError, match="this is a folder; expected a regular file"):
            read(tmp_path)
        with pytest.raises(MiniloraError, match="cannot open: embedded null byte"):
            read("nul\0.safetensors")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        open_safetensors(tmp_path / "pipe")


def test_a_lying_length_allocates_nothing(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(one(shape=f"[{2**40}]", offsets=f"[0,{2**40}]"))
    tracemalloc.start()
    with pytest.raises(FormatError):
        read_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
