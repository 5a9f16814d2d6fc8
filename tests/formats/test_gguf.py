"""A GGUF file is read as the format says, or refused with a reason."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np
import pytest
from formats.gguf_builder import (
    ARRAY,
    KINDS,
    STRING,
    TYPES,
    build_gguf,
    gguf_bytes,
    pair,
    random_blocks,
    string,
    tensor_info,
    u32,
    u64,
)

from minilora.errors import FormatError, MiniloraError
from minilora.formats import gguf_header
from minilora.formats.gguf import GGUFFile, open_gguf
from minilora.formats.quant import STORAGES, dequantize

DATA = b"\x01" * 64


def small_file(version=3, alignment=None):
    rng = np.random.default_rng(5)
    metadata = {
        "general.architecture": "llama",
        "naïve": "☃",
        "flag": True,
        "flags": [True, False],
        "none": [],
        "tokens": ["a", "", "☃"],
        "scores": [0.5, -1.0],
        "i8": ("i8", -3),
        "big": ("u64", 2**63),
        "f64": ("f64", 0.1),
    }
    tensors = {
        "norm": np.arange(5, dtype=np.float32),
        "q": ("q4_1", (3, 64), random_blocks("q4_1", (3, 64), rng)),
        "stack": ("f16", (2, 3, 5), random_blocks("f16", (2, 3, 5), rng)),
    }
    return build_gguf(metadata, tensors, version=version, alignment=alignment)


def kv(*pairs, count=None):
    return gguf_bytes(pairs, pair_count=count)


def dirs(*infos, data=DATA, pairs=()):
    return gguf_bytes(pairs, infos, data)


def array(kind, count, raw=b""):
    return ARRAY, u32(kind) + u64(count) + raw


def aligned(content, kind="u32"):
    return gguf_bytes([pair("general.alignment", content, kind)], [tensor_info("t", [4], "f32", 0)], DATA)


def f32(name="t", extents=(4,), offset=0):
    return tensor_info(name, extents, "f32", offset)


BAD = {
    # before the metadata
    "an empty file": (b"", "the file is empty"),
    "two bytes": (b"GG", "it begins with 'GG', expected 'GGUF'"),
    "another magic": (
        gguf_bytes(magic=b"GGML"),
        "at byte 0: it begins with 'GGML', expected 'GGUF'; this is no GGUF file",
    ),
    "a reversed magic": (gguf_bytes(magic=b"FUGG"), "expected 'GGUF'"),
    "only the magic": (b"GGUF", "at byte 4: version takes 4 bytes, but 0 are left; the file is cut short"),
    "version 0": (gguf_bytes(version=0), "version is 0, expected 2 or 3"),
    "version 1": (gguf_bytes(version=1), "version is 1, expected 2 or 3; convert it with a newer tool"),
    "version 4": (gguf_bytes(version=4), "version is 4, expected 2 or 3"),
    "a big-endian file": (gguf_bytes(version=0x03000000), "big-endian files are not supported"),
    "no counts": (b"GGUF" + u32(3), "tensor count takes 8 bytes, but 0 are left"),
    "half the counts": (b"GGUF" + u32(3) + u64(0) + b"\0\0", "metadata count takes 8 bytes, but 2 are left"),
    "a tensor count of 2**64 - 1": (
        gguf_bytes(tensor_count=2**64 - 1),
        "at byte 8: tensor count is 18446744073709551615, expected at most 0",
    ),
    "a tensor count of 2**63": (gguf_bytes(tensor_count=2**63), "tensor count is"),
    "more tensors than fit": (dirs(f32()).replace(u64(1), u64(99), 1), "tensor count is 99, expected at most"),
    "more tensors than there are": (gguf_bytes(infos=[f32()], data=DATA, tensor_count=2), "tensor"),
    "a metadata count of 2**64 - 1": (
        kv(count=2**64 - 1),
        "at byte 16: metadata count is 18446744073709551615, expected at most 0",
    ),
    "more metadata than fits": (kv(pair("a", 1), count=9), "metadata count is 9, expected at most 1"),
    "more metadata than there is": (kv(pair("a", "x" * 99), count=2), "length of key 1 takes 8 bytes, but 0 are left"),
    # keys
    "an empty key": (kv(pair("", 1), pair("x", 1)), "at byte 24: key 0 is empty, expected a name"),
    "a key twice": (kv(pair("a", 1), pair("a", 1)), "key 'a' comes twice, expected it once"),
    "a key that is no UTF-8": (kv(pair(b"\xff", 1)), "key 0 is '\\\\xff', expected UTF-8"),
    "a key over the limit": (kv(pair("k" * 65536, 1)), "key 0 has 65536 bytes, expected at most 65535"),
    "a key longer than the file": (
        kv(string("key", length=999) + b"\0" * 20),
        "key 0 takes 999 bytes, but 23 are left",
    ),
    "a key of 2**64 - 1 bytes": (
        kv(string("key", length=2**64 - 1) + b"\0" * 20),
        "key 0 has 18446744073709551615 bytes",
    ),
    "a key of 2**63 bytes": (kv(string("key", length=2**63) + b"\0" * 20), "key 0 has 9223372036854775808 bytes"),
    # values
    "value type 13": (kv(pair("a", (13, b"\0" * 8))), "'a' has value type 13, expected one of 0 to 12"),
    "value type 2**32 - 1": (kv(pair("a", (2**32 - 1, b"\0" * 8))), "'a' has value type 4294967295"),
    "no value": (kv(pair("abc", (4, b"")), count=1), "value of 'abc' takes 4 bytes, but 0 are left"),
    "half a value": (kv(pair("abc", (10, b"\0" * 7))), "value of 'abc' takes 8 bytes, but 7 are left"),
    "no type": (kv(string("a long key")), "type of 'a long key' takes 4 bytes, but 0 are left"),
    "a boolean of 2": (kv(pair("a", (7, b"\x02"))), "'a' holds the boolean 2, expected 0 or 1"),
    "a boolean of 255 in an array": (kv(pair("a", array(7, 2, b"\x01\xff"))), "'a' holds the boolean 255"),
    "text longer than the file": (
        kv(pair("a", (STRING, string("x", length=2)))),
        "value of 'a' takes 2 bytes, but 1 are",
    ),
    "text of 2**64 - 1 bytes": (
        kv(pair("a", (STRING, string("x", length=2**64 - 1)))),
        "value of 'a' has 18446744073709551615",
    ),
    "text that is no UTF-8": (kv(pair("a", (STRING, string(b"\xc3(")))), "value of 'a' is '\\\\xc3(', expected UTF-8"),
    "text that is a surrogate": (kv(pair("a", (STRING, string(b"\xed\xa0\x80")))), "expected UTF-8"),
    # arrays
    "an array of arrays": (
        kv(pair("a", array(ARRAY, 1, u32(4) + u64(0)))),
        "'a' is an array of arrays, expected numbers or strings",
    ),
    "an array of type 13": (
        kv(pair("a", array(13, 1, b"\0" * 8))),
        "'a' is an array of type 13, expected one of 0 to 12",
    ),
    "an array without a type": (
        kv(pair("a long key", (ARRAY, b""))),
        "element type of 'a long key' takes 4 bytes, but 0",
    ),
    "an array without a length": (
        kv(pair("a long key", (ARRAY, u32(4)))),
        "length of 'a long key' takes 8 bytes, but 0",
    ),
    "an array longer than the file": (
        kv(pair("a", array(4, 3, b"\0" * 11))),
        "value of 'a' takes 12 bytes, but 11 are left",
    ),
    "an array of 2**64 - 1 numbers": (
        kv(pair("a", array(4, 2**64 - 1, b"\0" * 9))),
        "18446744073709551615 numbers in arrays, expected at most 1000000",
    ),
    "an array whose size would wrap": (kv(pair("a", array(4, 2**62, b"\0" * 9))), "4611686018427387904 numbers"),
    "an array of 2**64 - 1 strings": (
        kv(pair("a", array(STRING, 2**64 - 1, b"\0" * 9))),
        "18446744073709551615 strings, expected at most 900000",
    ),
    "more strings than fit": (
        kv(pair("a", array(STRING, 3, b"\0" * 23))),
        "value of 'a' takes 24 bytes, but 23 are left",
    ),
    "an array that stops inside a length": (
        kv(pair("a", array(STRING, 3, string("x" * 12) + b"\0" * 5))),
        "length of 'a'[1] takes 8 bytes, but 5",
    ),
    "an array with a string too long": (
        kv(pair("a", array(STRING, 1, string("x", length=9)))),
        "'a'[0] takes 9 bytes, but 1 are left",
    ),
    "an array with a string one byte too long": (
        kv(pair("a", array(STRING, 1, string("xyz", length=4)))),
        "'a'[0] takes 4 bytes, but 3 are left",
    ),
    "an array with a string of 2**64 - 1": (
        kv(pair("a", array(STRING, 1, string("x", length=2**64 - 1)))),
        "'a'[0] takes 18446744073709551615",
    ),
    "an array with a string of no UTF-8": (
        kv(pair("a", array(STRING, 2, string("x") + string(b"\x80")))),
        "'a'[1] is '\\\\x80', expected UTF-8",
    ),
    # alignment
    "an alignment of 0": (aligned(0), "general.alignment is 0, expected a power of two up to 65536"),
    "an alignment of 3": (aligned(3), "general.alignment is 3, expected a power of two"),
    "an alignment of 33": (aligned(33), "general.alignment is 33"),
    "an alignment of 2**31": (aligned(2**31), "general.alignment is 2147483648, expected a power of two up to 65536"),
    "an alignment of 2**17": (aligned(2**17), "general.alignment is 131072"),
    "an alignment of 64 bits": (aligned(32, "u64"), "general.alignment has value type 10, expected 4 (uint32)"),
    "an alignment below zero": (aligned(-32, "i32"), "general.alignment has value type 5"),
    "an alignment that is text": (gguf_bytes([pair("general.alignment", "32")]), "general.alignment has value type 8"),
    "an alignment that is a fraction": (aligned(32.0, "f32"), "general.alignment has value type 6"),
    # the directory
    "a tensor name of 64 bytes": (dirs(f32("n" * 64)), "name of tensor 0 has 64 bytes, expected at most 63"),
    "a tensor name of 2**64 - 1 bytes": (
        dirs(string("n", length=2**64 - 1) + b"\0" * 24),
        "name of tensor 0 has 18446744073709551615",
    ),
    "a tensor name of no UTF-8": (dirs(f32(b"\xfe")), "name of tensor 0 is '\\\\xfe', expected UTF-8"),
    "a tensor name twice": (dirs(f32("t"), f32("t", offset=32)), "tensor 't' comes twice, expected it once"),
    "no axes": (dirs(f32(extents=())), "tensor 't' has 0 axes, expected 1 to 4"),
    "five axes": (dirs(f32(extents=(1, 1, 1, 1, 1))), "tensor 't' has 5 axes, expected 1 to 4"),
    "2**32 - 1 axes": (dirs(string("t") + u32(2**32 - 1) + b"\0" * 24), "tensor 't' has 4294967295 axes"),
    "a size of 0": (dirs(f32(extents=(4, 0))), "tensor 't' has extents (4, 0), expected 1 or more each"),
    "a size of 2**63": (dirs(f32(extents=(2**63,))), "fewer than 2**60 elements"),
    "a size of 2**64 - 1": (dirs(f32(extents=(2**64 - 1,))), "fewer than 2**60 elements"),
    "a product that wraps to 0": (dirs(f32(extents=(2**32, 2**32))), "fewer than 2**60 elements"),
    "a product that wraps to 4": (dirs(f32(extents=(2**62 + 1, 4))), "fewer than 2**60 elements"),
    "bytes that wrap": (dirs(f32(extents=(2**59, 2))), "fewer than 2**60 elements"),
    "an unknown type": (
        dirs(tensor_info("t", [32], 99, 0)),
        "tensor 't' has type 99, expected one of 0 (f32), 1 (f16), 2 (q4_0)",
    ),
    "a type that was removed": (dirs(tensor_info("t", [32], 4, 0)), "tensor 't' has type 4, expected"),
    "a type of 2**32 - 1": (dirs(tensor_info("t", [32], 2**32 - 1, 0)), "tensor 't' has type 4294967295"),
    "rows that are not whole blocks of 32": (
        dirs(tensor_info("t", [33, 32], "q4_0", 0)),
        "rows of 33 elements, expected a multiple of 32 for q4_0",
    ),
    "rows that are not whole blocks of 256": (
        dirs(tensor_info("t", [32, 8], "q6_k", 0)),
        "rows of 32 elements, expected a multiple of 256 for q6_k",
    ),
    "a directory that stops in a name": (
        dirs(string("name", length=40) + b"\0" * 12, data=b""),
        "name of tensor 0 takes 40 bytes, but 16 are left",
    ),
    "a directory that stops in the axes": (
        dirs(f32(extents=(4, 4, 4, 4))[:-20], data=b""),
        "axis 3 of tensor 't' takes 8 bytes, but 0",
    ),
    "a directory that stops in the type": (
        dirs(f32(extents=(4, 4))[:-10], data=b""),
        "type of tensor 't' takes 4 bytes, but 2 are left",
    ),
    "a directory that stops in the offset": (
        dirs(f32(extents=(4, 4))[:-1], data=b""),
        "offset of tensor 't' takes 8 bytes, but 7 are left",
    ),
    # where tensors lie
    "an offset that does not start at 0": (
        dirs(f32(offset=32)),
        "tensor 't' has offset 32, which leaves a hole, expected 0",
    ),
    "a misaligned offset": (
        dirs(f32("a"), f32("b", offset=16)),
        "tensor 'b' has offset 16, which is not a multiple of the alignment",
    ),
    "two tensors at one place": (
        dirs(f32("a"), f32("b", offset=0)),
        "tensor 'b' has offset 0, which overlaps another tensor, expected 32",
    ),
    "a hole": (
        dirs(f32("a"), f32("b", offset=64), data=DATA * 2),
        "tensor 'b' has offset 64, which leaves a hole, expected 32",
    ),
    "offsets in another order": (dirs(f32("a", offset=32), f32("b", offset=0)), "tensor 'a' has offset 32"),
    "an offset that wraps into the header": (dirs(f32(offset=2**64 - 32)), "which leaves a hole"),
    "an offset of 2**63": (dirs(f32(offset=2**63)), "tensor 't' has offset 9223372036854775808"),
    "a tensor that is cut short": (
        dirs(f32(extents=(17,))),
        "tensor 't' ends at byte 132, but the file has 128; the file is cut short: fetch it again",
    ),
    "a tensor of 2**59 elements": (dirs(f32(extents=(2**59,))), "but the file has 128"),
    "no data at all": (dirs(f32(), data=b""), "ends at byte"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_the_reason(tmp_path, case):
    content, reason = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    began = time.perf_counter()
    with pytest.raises(FormatError) as caught:
        open_gguf(path)
    assert time.perf_counter() - began < 1
    message = str(caught.value)
    assert reason in message
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 400 + len(str(path))


def test_there_are_at_least_forty_four_bad_files():
    assert len(BAD) >= 44
    assert len({content for content, _ in BAD.values()}) == len(BAD)


def test_every_prefix_of_a_file_is_refused_until_its_last_tensor_is_whole(tmp_path):
    path, whole = tmp_path / "cut.gguf", small_file()
    path.write_bytes(whole)
    last = open_gguf(path).tensors["stack"]
    needed = last.begin + last.nbytes
    assert needed <= len(whole) < needed + 32
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length < needed:
            with pytest.raises(FormatError):
                open_gguf(path)
        else:
            assert open_gguf(path).array("stack").shape == (2, 3, 5)


LIKELY = bytes([0, 1, 2, 7, 8, 9, 32, 127, 128, 255])


@pytest.mark.parametrize("version", [2, 3])
def test_a_mutated_file_is_read_in_full_or_refused(version):
    whole, rng, accepted = small_file(version), random.Random(version), 0
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content) - 400)] = rng.choice(LIKELY + bytes([rng.randrange(256)]))
        try:
            file = GGUFFile("mutated", bytes(content))
        except FormatError:
            continue
        accepted += 1
        for name, tensor in file.tensors.items():
            assert tensor.begin + tensor.nbytes <= len(content)
            if tensor.storage in STORAGES:
                assert file.array(name).shape == tensor.shape
    assert accepted > 50


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 1, 8, 32, 4096])
def test_everything_in_a_file_is_read(tmp_path, version, alignment):
    path = tmp_path / "small.gguf"
    path.write_bytes(small_file(version, alignment))
    file = open_gguf(path)
    metadata = dict(file.metadata)
    assert metadata.pop("general.alignment", None) == alignment
    assert metadata == {
        "general.architecture": "llama",
        "naïve": "☃",
        "flag": True,
        "flags": [True, False],
        "none": [],
        "tokens": ["a", "", "☃"],
        "scores": [0.5, -1.0],
        "i8": -3,
        "big": 2**63,
        "f64": 0.1,
    }
    assert (file.path, file.version, file.alignment) == (str(path), version, alignment or 32)
    assert [(t.name, t.storage, t.shape) for t in file.tensors.values()] == [
        ("norm", "f32", (5,)),
        ("q", "q4_1", (3, 64)),
        ("stack", "f16", (2, 3, 5)),
    ]
    assert all(t.begin % file.alignment == 0 for t in file.tensors.values())
    rng = np.random.default_rng(5)
    q, stack = random_blocks("q4_1", (3, 64), rng), random_blocks("f16", (2, 3, 5), rng)
    np.testing.assert_array_equal(file.array("norm"), np.arange(5, dtype=np.float32), strict=True)
    halves = np.frombuffer(stack, "<f2").reshape(2, 3, 5)
    np.testing.assert_array_equal(file.array("stack"), halves.astype(np.float32), strict=True)
    blocks = file.blocks("q")
    assert blocks.shape == (3, 40)
    assert blocks.tobytes() == q
    np.testing.assert_array_equal(file.array("q"), dequantize(blocks, "q4_1"), strict=True)
    assert file.blocks("stack").shape == (6, 10)
    assert file.blocks("norm").shape == (1, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_read_at_its_limits(tmp_path, kind):
    _, code = KINDS[kind]
    if kind == "bool":
        numbers = [False, True]
    elif kind in ("f32", "f64"):
        numbers = [0.0, -2.5, float("inf"), float(np.finfo(code).max)]
    else:
        info = np.iinfo(code)
        numbers = [int(info.min), 0, int(info.max)]
    path = tmp_path / "n.gguf"
    path.write_bytes(build_gguf({"all": (kind, numbers), **{f"n{i}": (kind, n) for i, n in enumerate(numbers)}}, {}))
    metadata = open_gguf(path).metadata
    assert metadata["all"] == numbers == [metadata[f"n{i}"] for i in range(len(numbers))]
    assert {type(n) for n in metadata["all"]} == {type(numbers[0])}


@pytest.mark.parametrize("storage", STORAGES)
def test_a_tensor_of_every_storage_is_decoded(tmp_path, storage):
    shape = (2, 3, 256)
    raw = random_blocks(storage, shape, np.random.default_rng(1))
    path = tmp_path / "t.gguf"
    path.write_bytes(build_gguf({}, {"t": (storage, shape, raw)}))
    array = open_gguf(path).array("t")
    assert array.shape == shape
    assert array.dtype == np.float32
    assert np.isfinite(array).all()
    assert array.std() > 0


def test_the_builders_table_of_storages_is_the_projects():
    assert {name: (block, nbytes) for name, (_, block, nbytes) in TYPES.items() if name in STORAGES} == {
        name: (storage.block, storage.nbytes) for name, storage in STORAGES.items()
    }


@pytest.mark.parametrize("storage", [name for name in TYPES if name not in STORAGES])
def test_a_tensor_of_another_storage_is_listed_but_named_when_asked_for(tmp_path, storage):
    path = tmp_path / "t.gguf"
    path.write_bytes(
        build_gguf(
            {},
            {"x\n": (storage, (2, 256), random_blocks(storage, (2, 256), np.random.default_rng(1))), "y": np.ones(1)},
        )
    )
    file = open_gguf(path)
    assert file.tensors["x\n"].storage == storage
    assert file.blocks("x\n").shape[0] == 2
    with pytest.raises(FormatError, match=rf"tensor 'x\\n' is stored as {storage}, which .* expected one of f32, f16"):
        file.array("x\n")
    np.testing.assert_array_equal(file.array("y"), [1])


def test_f32_and_blocks_are_read_only_views(tmp_path):
    path = tmp_path / "t.gguf"
    path.write_bytes(small_file())
    file = open_gguf(path)
    for view in (file.array("norm"), file.blocks("q"), file.blocks("norm")):
        assert not view.flags.writeable
        assert view.base is not None
    assert file.array("q").flags.writeable


def test_an_unaligned_f32_tensor_is_copied_to_aligned_memory(tmp_path):
    path = tmp_path / "t.gguf"
    aligned = []
    for extra in range(4):
        path.write_bytes(build_gguf({"k" * (1 + extra): 1}, {"t": np.arange(3)}, alignment=1))
        file = open_gguf(path)
        aligned.append(file.tensors["t"].begin % 4 == 0)
        assert file.array("t").flags.aligned
        np.testing.assert_array_equal(file.array("t"), [0, 1, 2])
    assert aligned.count(True) == 1


def test_padding_after_the_last_tensor_may_be_missing(tmp_path):
    path = tmp_path / "t.gguf"
    path.write_bytes(build_gguf({}, {"t": np.arange(3)})[:-20])
    np.testing.assert_array_equal(open_gguf(path).array("t"), [0, 1, 2])


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "nul\0", "new\nline", "\x1b[2J", "\u202egnp.exe", "☃", "n" * 63]
)
def test_a_name_is_data_and_escaped_when_printed(tmp_path, name):
    path = tmp_path / "t.gguf"
    path.write_bytes(build_gguf({}, {name: np.ones(2)}))
    np.testing.assert_array_equal(open_gguf(path).array(name), [1, 1])
    for content in (
        dirs(f32(name), f32(name, offset=32)),
        kv(pair(f"k{name}", 1), pair(f"k{name}", 1)),
        dirs(tensor_info(name, [1], 99, 0)),
        dirs(f32(name, extents=(99,))),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            open_gguf(path)
        assert str(caught.value).isprintable()


def test_an_unknown_tensor_is_answered_with_the_names_there_are(tmp_path):
    path = tmp_path / "t.gguf"
    path.write_bytes(small_file())
    for read in (open_gguf(path).array, open_gguf(path).blocks):
        with pytest.raises(FormatError, match=r"no tensor 'x'; the file holds 3: 'norm', 'q', 'stack'$"):
            read("x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MiniloraError, match=r"a\.gguf: no such file; check the name"):
        open_gguf(tmp_path / "a.gguf")


def test_too_much_metadata_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.gguf"
    path.write_bytes(kv(pair("a", "x" * 600), pair("b", "y" * 600)))
    assert len(open_gguf(path).metadata) == 2
    monkeypatch.setattr(gguf_header, "MAX_METADATA", 1000)
    with pytest.raises(FormatError, match="value of 'b' brings the metadata over 1000 bytes"):
        open_gguf(path)


def test_a_string_over_the_limit_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "t.gguf"
    monkeypatch.setattr(gguf_header, "MAX_TEXT", 100)
    path.write_bytes(kv(pair("a", "x" * 100), pair("b", ["y", "z" * 100])))
    assert open_gguf(path).metadata == {"a": "x" * 100, "b": ["y", "z" * 100]}
    path.write_bytes(kv(pair("a", "x" * 101)))
    with pytest.raises(FormatError, match="value of 'a' has 101 bytes, expected at most 100"):
        open_gguf(path)
    path.write_bytes(kv(pair("b", ["y", "z" * 101])))
    with pytest.raises(FormatError, match=r"'b'\[1\] has 101 bytes, expected at most 100"):
        open_gguf(path)


def _strings(count, text):
    return pair("s", array(STRING, count, string(text) * count))


def _keys():
    return [pair(f"{i:x}", 1, "u8") for i in range(gguf_header.MAX_KEYS)]


def _infos():
    infos = [f32(f"{i:x}", (1,), 32 * i) for i in range(gguf_header.MAX_TENSORS)]
    return {"infos": infos, "data": b"\1" * 32 * gguf_header.MAX_TENSORS}


def _numbers(kind, count):
    number, code = KINDS[kind]
    raw = np.random.default_rng(0).integers(300, 2**15, count).astype(np.dtype(code)).tobytes()
    return pair("n", array(number, count, raw))


GREEDY = {
    "empty strings": lambda: gguf_bytes([_strings(gguf_header.MAX_STRINGS, "")]),
    "one byte more than the limit of strings": lambda: gguf_bytes([_strings(gguf_header.MAX_STRINGS + 1, "")]),
    "strings of two bytes": lambda: gguf_bytes([_strings(gguf_header.MAX_STRINGS, "ab")]),
    "strings of one wide character": lambda: gguf_bytes([_strings(gguf_header.MAX_STRINGS, "☃")]),
    "huge strings with a wide character": lambda: gguf_bytes(
        [pair(key, "x" * (gguf_header.MAX_TEXT - 99) + "\U0001f600") for key in "abc"]
    ),
    "numbers of two bytes": lambda: gguf_bytes([_numbers("u16", gguf_header.MAX_NUMBERS)]),
    "numbers of eight bytes": lambda: gguf_bytes([_numbers("f64", gguf_header.MAX_NUMBERS)]),
    "one string as long as all metadata may be": lambda: gguf_bytes(
        [pair("a", "x" * (gguf_header.MAX_METADATA - 99) + "\U0001f600")]
    ),
    "keys": lambda: gguf_bytes(_keys()),
    "tensors": lambda: gguf_bytes(**_infos()),
    "a lying count of strings": lambda: kv(pair("s", array(STRING, 900_000, b"\0" * 7_200_000 + b"\xff"))),
}


# VmHWM, since getrusage's ru_maxrss starts at the parent's size.
MEASURE = """
import re, sys, time
from minilora.errors import FormatError
from minilora.formats.gguf import open_gguf

def memory(field):
    return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

before, began = memory("VmRSS"), time.process_time()
try:
    file = open_gguf(sys.argv[1])
except FormatError:
    pass
print(time.process_time() - began, memory("VmHWM") - before)
"""


@pytest.mark.parametrize("case", GREEDY)
def test_a_greedy_file_costs_little_time_and_memory(tmp_path, case):
    path = tmp_path / "greedy.gguf"
    path.write_bytes(GREEDY[case]())
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True, timeout=60)
    seconds, peak = map(float, done.stdout.split())
    assert seconds < 1
    assert peak < 3 * path.stat().st_size + (64 << 20)
