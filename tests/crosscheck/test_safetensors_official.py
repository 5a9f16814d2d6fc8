"""Our reader and writer against the safetensors package: nothing is accepted by us alone, and no value differs.

MINILORA_FUZZ sets the number of mutated files (100,000).
"""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from formats.safetensors_builder import entry, safetensors_bytes, small_file
from formats.test_safetensors_reading import BAD
from formats.test_safetensors_writing import CODES, NAMES, layouts, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.errors import FormatError
from minilora.formats.safetensors import DTYPES, SafetensorsFile, open_safetensors, write_safetensors

MUTATIONS = int(os.environ.get("MINILORA_FUZZ", "100000"))
TOKENS = b'{ } [ ] " , : 0 1 - . e \\ \\u0061 \\ud800 null true NaN 00 18446744073709551615 "dtype": "a": "F4"'.split()
TOKENS += [b'"BF16"', b" ", b"\n", b'"__metadata__":', b"\x00", b"\xff", b"\xc3\xa9", b"\xed\xa0\x80"]


def seeds():
    every = {}
    end = 0
    for name, (bits, _) in DTYPES.items():
        every[name] = entry(name, [4, 2], [end, end + bits])
        end += bits
    return [
        small_file(),
        safetensors_bytes(every, bytes(range(256))[:end].ljust(end, b"\7")),
        safetensors_bytes("{}"),
        safetensors_bytes({"__metadata__": None, "a": entry("U8", [1], [0, 1])}, b"x"),
        safetensors_bytes({"b": entry("F32", [0], [4, 4]), "a": entry("F32", [1], [0, 4])}, b"abcd"),
    ]


def mutated(rng, content):
    """Change bytes anywhere, splice tokens into the header, change the length, cut or extend the file."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind, header = rng.randrange(6), 8 + int.from_bytes(content[:8], "little") % max(1, len(content))
        at = rng.randrange(8, max(9, min(header, len(content))))
        if kind == 0:
            content[rng.randrange(len(content))] = rng.randrange(256)
        elif kind == 1:
            content[at : at + 1] = rng.choice(TOKENS)[:1]
        elif kind == 2:  # the length follows, so that the header stays in step with the data
            token, gone = rng.choice(TOKENS), rng.choice([0, 0, 1, 2, 9])
            old = int.from_bytes(content[:8], "little")
            gone = max(0, min(gone, 8 + old - at))
            content[at : at + gone] = token
            content[:8] = ((old + len(token) - gone) % 2**64).to_bytes(8, "little")
        elif kind == 3:
            start, size = rng.randrange(8, max(9, min(header, len(content)))), rng.randrange(1, 60)
            piece = bytes(content[start : min(start + size, header)])
            content[at:at] = piece
            content[:8] = ((int.from_bytes(content[:8], "little") + len(piece)) % 2**64).to_bytes(8, "little")
        elif kind == 4:
            content[rng.randrange(8)] = rng.choice([0, 1, 8, 255, rng.randrange(256)])
        else:
            content = (
                content[: rng.randrange(len(content))] if rng.random() < 0.5 else content + b"\0" * rng.randrange(9)
            )
        if len(content) < 9:
            break
    return bytes(content)


def official(content):
    """name -> (dtype, shape, bytes), or None if the official reader refuses."""
    try:
        return {name: (info["dtype"], tuple(info["shape"]), bytes(info["data"]))
                for name, info in safetensors.deserialize(content)}  # fmt: skip
    except safetensors.SafetensorError:
        return None


def ours(content):
    try:
        file = SafetensorsFile("mutated", content)
    except FormatError:
        return None
    return {name: (info.dtype, info.shape, content[info.begin : info.end]) for name, info in file.tensors.items()}


def test_nothing_is_accepted_by_us_alone_and_no_value_differs():
    rng, files, both, theirs = random.Random(20), seeds(), 0, 0
    for _ in range(MUTATIONS):
        content = mutated(rng, rng.choice(files))
        mine = ours(content)
        if mine is None:
            theirs += official(content) is not None
            continue
        assert mine == official(content), content
        both += 1
    assert both > MUTATIONS // 50  # the comparison is of something
    assert theirs < MUTATIONS // 10  # we are not strict by refusing everything


def test_our_bad_files_are_bad_to_the_official_reader_but_for_the_rules_that_we_add():
    ours_alone = {case for case, (content, _) in BAD.items() if official(content) is not None}
    assert ours_alone == {
        "a space before the header",
        "a newline after the header",
        "a tab as padding",
        "a name twice",
        "a name twice, once escaped",
        "a metadata key twice",
        "an entry that is a list",
        "a fourth field",
        "65 axes",
    }


@settings(max_examples=max(200, settings().max_examples))
@given(tensors=st.dictionaries(NAMES, layouts(), max_size=4), metadata=st.dictionaries(NAMES, NAMES, max_size=3))
def test_what_we_write_the_official_reader_reads(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "ours.safetensors"
    write_safetensors(path, tensors, metadata)
    with safetensors.safe_open(path, "numpy") as file:
        assert (file.metadata() or {}) == metadata
        assert set(file.keys()) == set(tensors)
        assert all(same_bits(file.get_tensor(name), array) for name, array in tensors.items())


@settings(max_examples=max(200, settings().max_examples))
@given(tensors=st.dictionaries(NAMES, layouts(), max_size=4), metadata=st.dictionaries(NAMES, NAMES, max_size=1))
def test_for_contiguous_arrays_our_bytes_are_the_official_ones(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "ours.safetensors"
    plain = {name: np.asarray(a, a.dtype.newbyteorder("="), order="C").copy() for name, a in tensors.items()}
    write_safetensors(path, plain, metadata)
    assert path.read_bytes() == safetensors.numpy.save(plain, metadata or None)


@pytest.mark.parametrize("code", CODES)
def test_what_the_official_writer_writes_we_read(tmp_path, code):
    path = tmp_path / "theirs.safetensors"
    raw = np.random.default_rng(0).integers(0, 2, (4, 6, np.dtype(code).itemsize), dtype=np.uint8)
    arrays = {"w": raw.view(code).reshape(4, 6), "empty": np.empty((0, 6), code), "scalar": np.ones((), code)}
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    file = open_safetensors(path)
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == arrays.keys()
    assert all(same_bits(file.array(name), array) for name, array in arrays.items())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "bfloat16"])
def test_what_torch_writes_in_dtypes_of_its_own_we_list(tmp_path, dtype):
    path = tmp_path / "torch.safetensors"
    tensor = torch.arange(24, dtype=torch.uint8).reshape(4, 6).repeat(1, 2).view(getattr(torch, dtype))
    safetensors.torch.save_file({"w": tensor}, path)
    file = open_safetensors(path)
    info = file.tensors["w"]
    assert info.shape == tuple(tensor.shape)
    assert path.read_bytes()[info.begin : info.end] == tensor.view(torch.uint8).numpy().tobytes()
    if dtype != "bfloat16":
        with pytest.raises(FormatError, match=f"tensor 'w' has dtype {info.dtype}, which minilora cannot compute"):
            file.array("w")


def test_bfloat16_is_torchs(tmp_path):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 256)
    safetensors.torch.save_file({"every": every}, tmp_path / "b.safetensors")
    got = open_safetensors(tmp_path / "b.safetensors").array("every")
    want = every.float().numpy()
    np.testing.assert_array_equal(got, want, strict=True)
    same = got.view(np.uint32) == want.view(np.uint32)
    assert same[~np.isnan(want)].all()  # torch may set a NaN's quiet bit
