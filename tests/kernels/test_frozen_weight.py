"""FrozenWeight: the same matrix whatever its storage and memory layout, never written."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from minilora.errors import ShapeError
from minilora.formats.quant import STORAGES, dequantize
from minilora.kernels.frozen import FrozenWeight
from minilora.ops import linear


def matrix(shape=(3, 4), dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def blocks(storage, rows=3, per_row=2, seed=0):
    """Random bytes whose half-precision scales are finite."""
    layout = STORAGES[storage]
    if storage in ("f32", "f16", "bf16"):
        values = np.random.default_rng(seed).standard_normal((rows, per_row * 4)).astype(np.float32)
        if storage == "f16":
            return values.astype(np.float16).view(np.uint8)
        raw = values.view(np.uint8)
        return raw if storage == "f32" else np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8)
    raw = np.random.default_rng(seed).integers(0, 60, (rows, per_row * layout.nbytes)).astype(np.uint8)
    assert np.isfinite(dequantize(raw, storage)).all()
    return raw


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_contiguous_array_is_viewed_not_copied(dtype, order):
    array = np.array(matrix(dtype=dtype), order=order)
    frozen = FrozenWeight(array)
    assert np.shares_memory(frozen.dequantize(), array)
    np.testing.assert_array_equal(frozen.dequantize(), array)
    assert frozen.dequantize().flags.f_contiguous == (order == "F")
    assert (frozen.shape, frozen.ndim, frozen.dtype, frozen.nbytes) == ((3, 4), 2, dtype, array.nbytes)
    assert frozen.storage == {4: "f32", 8: "f64"}[array.itemsize]


def test_a_strided_array_is_packed():
    array = matrix((6, 8))[::2, ::2]
    np.testing.assert_array_equal(FrozenWeight(array).dequantize(), array)


def test_float32_is_moved_to_where_the_kernel_can_read_it():
    array = np.empty(3 * 4 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(3, 4)
    array[...] = matrix()
    for frozen in (FrozenWeight(array), FrozenWeight.from_blocks(array.view(np.uint8), "f32", transposed=False)):
        np.testing.assert_array_equal(linear(np.eye(3, dtype=np.float32), frozen).data, matrix())


@pytest.mark.parametrize("order", ["C", "F"])
def test_products_with_w_and_its_transpose_are_numpys(order):
    array = np.array(matrix(), order=order)
    frozen, x, g = FrozenWeight(array), matrix((2, 3)), matrix((2, 4))
    np.testing.assert_array_equal(x @ frozen, x @ array)
    np.testing.assert_array_equal(g @ frozen.T, g @ array.T)
    assert frozen.T.shape == (4, 3)
    np.testing.assert_array_equal(frozen.T.T.dequantize(), array)
    assert np.shares_memory(frozen.T.dequantize(), array)


def test_what_it_gives_out_cannot_be_written():
    array = matrix()
    frozen = FrozenWeight(array)
    for view in (frozen.dequantize(), frozen.T.dequantize()):
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 1
    array[0, 0] = 1  # the owner's array stays his


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("transposed", [True, False])
def test_every_storage_gives_its_decoded_matrix_rows_and_products(storage, transposed):
    raw = blocks(storage)
    decoded = dequantize(raw, storage)
    frozen = FrozenWeight.from_blocks(raw, storage, transposed=transposed)
    expected = decoded.T if transposed else decoded
    assert frozen.shape == expected.shape
    assert frozen.dtype == np.float32
    assert frozen.storage == storage
    assert frozen.nbytes == raw.nbytes
    np.testing.assert_array_equal(frozen.dequantize(), expected)
    for ids in ([0, 2, 0], [[1, 1], [2, 0]], np.zeros((0, 2), int), 1):
        np.testing.assert_array_equal(frozen.rows(ids), expected[np.asarray(ids)])
        np.testing.assert_array_equal(frozen.T.rows(ids), expected.T[np.asarray(ids)])
    x = matrix((2, expected.shape[0]))
    np.testing.assert_array_equal(x @ frozen, x @ expected)


@pytest.mark.parametrize("stored", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("bad", [-1, 3, 2**40])
def test_rows_that_are_not_there_are_refused(stored, bad):
    frozen = FrozenWeight(stored(matrix()))
    for ids in (bad, [0, bad], np.array([[1], [bad]])):
        with pytest.raises(ShapeError) as caught:
            frozen.rows(ids)
        assert str(caught.value) == (
            f"FrozenWeight.rows: ids holds {bad}, expected 0 to 2, as W has shape (3, 4)\n"
            "  count rows from the start, and check that the ids were made for this table"
        )


@pytest.mark.parametrize(("ids", "dtype"), [([0.0, 1.0], "float64"), ([True, False, True], "bool"), ("1", "<U1")])
def test_rows_are_named_by_integers_alone(ids, dtype):
    with pytest.raises(ShapeError, match=rf"FrozenWeight\.rows: ids has dtype {dtype}, expected integers\n  convert"):
        FrozenWeight(matrix()).rows(ids)


def test_float32_bytes_are_viewed_as_numbers_in_place():
    raw = blocks("f32")
    assert np.shares_memory(FrozenWeight.from_blocks(raw, "f32").dequantize(), raw)


def test_the_hash_is_that_of_the_stored_bytes_and_follows_a_write():
    raw = blocks("q8_0")
    frozen = FrozenWeight.from_blocks(raw, "q8_0")
    assert frozen.sha256() == hashlib.sha256(raw.tobytes()).hexdigest() == frozen.T.sha256()
    raw[-1, -1] ^= 1
    assert frozen.sha256() == hashlib.sha256(raw.tobytes()).hexdigest()


def test_empty_matrices_work():
    for shape in ((0, 3), (3, 0), (0, 0)):
        frozen = FrozenWeight(np.zeros(shape, np.float32))
        assert frozen.shape == shape
        assert (np.ones((2, shape[0]), np.float32) @ frozen).shape == (2, shape[1])
        assert len(frozen.sha256()) == 64
        assert frozen.rows([]).shape == (0, shape[1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3), r"FrozenWeight: the array has shape \(3,\), expected two axes \(in, out\)"),
        (np.ones((2, 2), np.int8), r"FrozenWeight: the array has dtype int8, expected float32 or float64"),
        (np.ones((2, 2), np.float16), r"(?s)the array has dtype float16.*from_blocks"),
    ],
)
def test_an_array_that_is_no_weight_is_refused(array, message):
    with pytest.raises(ShapeError, match=message):
        FrozenWeight(array)


def test_blocks_that_do_not_fit_their_storage_are_refused():
    with pytest.raises(ShapeError, match=r"FrozenWeight: unknown storage 'q9_9', expected one of f32"):
        FrozenWeight.from_blocks(np.zeros((1, 4), np.uint8), "q9_9")
    with pytest.raises(ShapeError, match=r"q8_0 blocks are uint8 \(1, 33\), expected .* a multiple of 34 bytes a row"):
        FrozenWeight.from_blocks(np.zeros((1, 33), np.uint8), "q8_0")
    with pytest.raises(ShapeError, match=r"q8_0 blocks are int8 \(1, 34\)"):
        FrozenWeight.from_blocks(np.zeros((1, 34), np.int8), "q8_0")


def test_it_says_what_it_is():
    assert repr(FrozenWeight(matrix())) == "FrozenWeight(3, 4), f32"
