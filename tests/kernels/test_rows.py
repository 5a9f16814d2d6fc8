"""Norms, activations, rotary positions and look-ups: the compiled kernel against the NumPy rule, by the operator."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minilora import kernels
from minilora.autograd import REGISTRY
from minilora.errors import ConfigError, ShapeError
from minilora.kernels.frozen import FrozenWeight

pytestmark = pytest.mark.native


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def angles(batch, time, half):
    at = 3 * normal(batch, time, half, seed=5)
    return np.cos(at), np.sin(at)


# Operands at the shapes of a transformer's step, cut down; parameters.
CASES = {
    "rms_norm": ((normal(4, 60, 576), 1 + 0.1 * normal(576, seed=1)), {"eps": 1e-5}),
    "layer_norm": ((3 + normal(4, 60, 384), 1 + 0.1 * normal(384, seed=1), normal(384, seed=2)), {"eps": 1e-5}),
    "silu": ((4 * normal(300, 401),), {}),
    "swiglu": ((4 * normal(300, 401), normal(300, 401, seed=1)), {}),
    "gelu": ((4 * normal(300, 401),), {"approximate": "none"}),
    "gelu tanh": ((4 * normal(300, 401),), {"approximate": "tanh"}),
    "rotary": ((normal(2, 60, 9, 64), *angles(2, 60, 32)), {}),
    "embedding": ((np.random.default_rng(0).integers(0, 50, (4, 60)), normal(50, 576)), {}),
}


def op_of(case):
    return REGISTRY[case.split()[0]]


def needs(case, operands):
    """Everything that has a gradient."""
    return tuple(o.differentiable for o in op_of(case).signature.expand(len(operands)))


def both(case, rule, operands, grad, need=None):
    """The output and the gradients by a rule."""
    op, params = op_of(case), CASES[case][1]
    need = needs(case, operands) if need is None else need
    out, saved = op.run(rule, operands, params, need)
    return out, *rule.vjp(grad, saved, need, **params)


def double(array):
    return array.astype(np.float64) if isinstance(array, np.ndarray) and array.dtype == np.float32 else array


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_as_near_to_float64_as_numpy_in_float32(case, record_property):
    op, operands = op_of(case), CASES[case][0]
    grad = normal(*op.run(op.reference, operands, CASES[case][1], (True,) * 3)[0].shape, seed=9)
    exact = both(case, op.reference, [double(a) for a in operands], double(grad))
    plain, kernel = (both(case, rule, operands, grad) for rule in (op.reference, op.kernel))
    for i, (want, one, other) in enumerate(zip(exact, plain, kernel, strict=True)):
        assert (one is None) == (other is None)
        if want is None:
            continue
        assert other.dtype == np.float32
        assert other.shape == want.shape
        off, allowed = (float(np.abs(got - want).max()) for got in (other, one))
        where = "output" if i == 0 else f"gradient {i}"
        print(f"{case:12s} {where:10s} kernel {off:.2e}  NumPy {allowed:.2e}")
        # NumPy may be exact, as a copy or a sum in the same order is.
        assert off <= 4 * allowed + 2.0**-24 * np.abs(want).max(), where


@pytest.mark.parametrize("case", CASES)
def test_one_two_and_three_threads_give_the_same_bits(case, monkeypatch):
    op, (operands, params) = op_of(case), CASES[case]
    if case == "embedding":
        operands = np.arange(2000) % 50, operands[1]
    # Large enough to be shared.
    tall = [np.concatenate([a] * 8) if isinstance(a, np.ndarray) and a.ndim > 2 else a for a in operands]
    grad = normal(*op.run(op.kernel, tall, params, (True,) * 3)[0].shape, seed=9)
    seen = set()
    for threads in (1, 2, 3):
        monkeypatch.setattr(kernels, "_set_threads", threads)
        seen.add(b"".join(a.tobytes() for a in both(case, op.kernel, tall, grad) if a is not None))
    assert len(seen) == 1


@pytest.mark.parametrize("case", CASES)
def test_strided_unaligned_and_read_only_operands_give_the_same_bits(case):
    op, (operands, params) = op_of(case), CASES[case]
    grad = normal(*op.run(op.kernel, operands, params, (True,) * 3)[0].shape, seed=9)

    def strided(a):
        return np.repeat(a, 2, axis=-1)[..., ::2]

    def unaligned(a):
        moved = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
        moved[...] = a
        return moved

    def read_only(a):
        locked = a.copy()
        locked.flags.writeable = False
        return locked

    want = both(case, op.kernel, operands, grad)
    for relaid in (strided, unaligned, np.asfortranarray, read_only):
        got = both(case, op.kernel, [relaid(a) for a in operands], relaid(grad))
        for one, other in zip(want, got, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", CASES)
def test_a_call_that_is_cut_gives_what_the_whole_gives(case, monkeypatch):
    from minilora.kernels import native

    op, (operands, params) = op_of(case), CASES[case]
    grad = normal(*op.run(op.kernel, operands, params, (True,) * 3)[0].shape, seed=9)
    whole = both(case, op.kernel, operands, grad)
    # At whole vectors, and so that several calls share one weight's gradient.
    monkeypatch.setattr(native, "CALL_FLOATS", 100 * 576)
    cut = both(case, op.kernel, operands, grad)
    rows = grad[..., 0].size
    for i, (one, other) in enumerate(zip(whole, cut, strict=True)):
        if one is None or (one.ndim > 1 and case != "embedding") or i == 0:
            np.testing.assert_array_equal(one, other)
        else:  # a sum over the rows in another order
            assert np.abs(one - other).max() <= 2 * rows * 2.0**-24 * np.abs(grad).max() * rows


@pytest.mark.parametrize("case", CASES)
def test_only_the_needed_gradients_are_formed(case):
    op, (operands, params) = op_of(case), CASES[case]
    grad = normal(*op.run(op.kernel, operands, params, (True,) * 3)[0].shape, seed=9)
    every = both(case, op.kernel, operands, grad)
    for i in range(len(operands)):
        need = tuple(j == i for j in range(len(operands)))
        if not needs(case, operands)[i]:
            continue
        some = both(case, op.kernel, operands, grad, need)
        assert [part is not None for part in some[1:]] == list(need)
        np.testing.assert_array_equal(some[1 + i], every[1 + i])


@pytest.mark.parametrize("absent", [(1,), (2,), (1, 2)])
def test_a_layer_norm_without_weight_or_bias_is_that_of_ones_and_zeros(absent):
    op, (operands, params) = op_of("layer_norm"), CASES["layer_norm"]
    given = [None if i in absent else a for i, a in enumerate(operands)]
    filled = list(operands)
    for i in absent:
        filled[i] = np.full(384, i == 1, np.float32)
    grad = normal(4, 60, 384, seed=9)
    need = tuple(a is not None for a in given)
    for one, other in zip(
        both("layer_norm", op.kernel, given, grad, need), both("layer_norm", op.kernel, filled, grad, need), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        op.run(op.kernel, given, params, need)[0], op.run(op.reference, given, params, need)[0], atol=1e-5
    )


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        ("rms_norm", [(0, 5), (5,)]),
        ("rms_norm", [(3, 0), (0,)]),
        ("rms_norm", [(2, 0, 4), (4,)]),
        ("layer_norm", [(0, 5), (5,), (5,)]),
        ("layer_norm", [(3, 0), (0,), (0,)]),
        ("silu", [(0,)]),
        ("silu", [()]),
        ("swiglu", [(2, 0), (2, 0)]),
        ("gelu", [()]),
        ("rotary", [(2, 0, 3, 4), (2, 0, 2), (2, 0, 2)]),
        ("rotary", [(2, 3, 1, 0), (2, 3, 0), (2, 3, 0)]),
    ],
)
def test_empty_operands_and_those_without_axes_give_what_the_reference_gives(case, shapes):
    op, operands = op_of(case), [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    grad = normal(*shapes[0], seed=9)
    plain, kernel = (both(case, rule, operands, grad) for rule in (op.reference, op.kernel))
    for one, other in zip(plain, kernel, strict=True):
        assert np.shape(one) == np.shape(other)
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", ["rms_norm", "layer_norm", "silu", "swiglu", "gelu", "gelu tanh", "rotary"])
def test_nan_and_infinity_reach_where_the_reference_lets_them(case):
    op = op_of(case)
    operands = [a.copy() for a in CASES[case][0]]
    flat = operands[0].reshape(-1)
    flat[[3, 1000, 2001]] = np.nan, np.inf, -np.inf
    grad = np.ones(op.run(op.reference, operands, CASES[case][1], (True,) * 3)[0].shape, np.float32)
    need = (True, *(False for _ in operands[1:]))
    plain, kernel = (both(case, rule, operands, grad, need) for rule in (op.reference, op.kernel))
    for one, other in zip(plain[:2], kernel[:2], strict=True):
        np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
        np.testing.assert_array_equal(np.isinf(one), np.isinf(other))


def test_gelu_keeps_its_digits_far_below_zero():
    op = REGISTRY["gelu"]
    x = -np.linspace(0, 12.8, 20001, dtype=np.float32)  # where Φ is a normal number
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.astype(np.float64)])
    got = op.run(op.kernel, (x,), {"approximate": "none"}, (False,))[0]
    off = np.abs(got - exact)[1:] / np.abs(exact)[1:]
    print(f"gelu: {off.max() / 2.0**-23:.2f} units in the last place")
    assert off.max() <= 32 * 2.0**-24  # derived in csrc/tests/test_rows.c


def test_gelu_refuses_another_approximation():
    with pytest.raises(ConfigError, match="gelu: approximate is 'exact', expected 'none' or 'tanh'"):
        REGISTRY["gelu"](normal(3), approximate="exact")


@pytest.mark.parametrize("backend", ["kernel", "reference"])
def test_rotary_keeps_x_only_for_the_gradients_of_cos_and_sin(backend):
    op, (operands, params) = op_of("rotary"), CASES["rotary"]
    rule = getattr(op, backend)
    assert op.run(rule, operands, params, (True, False, False))[1][0] is None
    for need in ((True, True, False), (False, False, True)):
        assert np.shares_memory(op.run(rule, operands, params, need)[1][0], operands[0])


def test_rotary_refuses_angles_for_another_width():
    with pytest.raises(ShapeError, match="rotary: x has D=6, but cos has E=2; expected D = 2 E"):
        REGISTRY["rotary"](normal(1, 2, 3, 6), normal(1, 2, 2), normal(1, 2, 2))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize(
    "held",
    [lambda w: w, FrozenWeight, lambda w: FrozenWeight(np.asfortranarray(w)), np.asfortranarray],
    ids=["array", "frozen", "frozen by columns", "array by columns"],
)
def test_embedding_takes_ids_of_any_integer_dtype_and_tables_of_any_order(held, dtype):
    ids, weight = np.array([[3, 0, 49], [3, 3, 7]], dtype), normal(50, 8)
    np.testing.assert_array_equal(REGISTRY["embedding"](ids, held(weight)), weight[ids.astype(np.intp)])


def test_embedding_names_an_id_that_is_outside_the_table():
    for bad in (-1, 50):
        with pytest.raises(ShapeError, match=f"embedding: ids holds {bad}, but weight has rows 0 to 49"):
            REGISTRY["embedding"](np.array([0, bad]), normal(50, 8))


def test_the_wrapper_itself_lets_no_id_reach_outside_the_table():
    from minilora.kernels import native

    with pytest.raises(ShapeError, match="embedding: ids holds 3, but the table has rows 0 to 2"):
        native.embedding_forward(np.array([0, 3]), normal(3, 4), 1)
    with pytest.raises(ShapeError, match="embedding: ids holds -1, but the table has rows 0 to 2"):
        native.embedding_backward(normal(2, 4), np.array([0, -1]), 3, 1)


def wrong_calls():
    from minilora.kernels import native

    x, w = normal(3, 5), normal(5)
    inv = np.ones(3, np.float32)
    return {
        "rms_norm: weight is (4,), need (D,) = (5,)": lambda: native.rms_norm_forward(x, w[:4].copy(), 1e-5, 1),
        "rms_norm: grad is (2, 5), need (M, D) = (3, 5)": lambda: native.rms_norm_backward(
            x[:2], x, inv, w, (True, True), 1
        ),
        "rms_norm: inv_rms is (2,), need (M,) = (3,)": lambda: native.rms_norm_backward(
            x, x, inv[:2], w, (True, True), 1
        ),
        "layer_norm: bias is (4,), need (D,) = (5,)": lambda: native.layer_norm_forward(x, w, w[:4].copy(), 1e-5, 1),
        "layer_norm: x is (2, 5), need (M, D) = (3, 5)": lambda: native.layer_norm_backward(
            x, (x[:2], inv, inv), w, (True, True, True), 1
        ),
        "layer_norm: grad_x and grad_weight need x, mean and inv_std": lambda: native.layer_norm_backward(
            x, None, w, (True, False, False), 1
        ),
        "silu: grad is (10,), need (N,) = (15,)": lambda: native.silu_backward(x[:2], x, 1),
        "swiglu: up is (10,), need (N,) = (15,)": lambda: native.swiglu_forward(x, x[:2], 1),
        "gelu: grad is (10,), need (N,) = (15,)": lambda: native.gelu_backward(x[:2], x, False, 1),
        "rotary: x has D = 5, need D = 2 E = 4": lambda: native.rotary(
            normal(1, 1, 3, 5), normal(1, 1, 2), normal(1, 1, 2), False, 1
        ),
        "embedding: grad is (2, 5), need (N, D) = (1, 5)": lambda: native.embedding_backward(
            x[:2], np.array([0]), 3, 1
        ),
    }


@pytest.mark.parametrize("message", range(11))
def test_what_a_kernel_cannot_read_is_refused_by_name(message):
    text, call = list(wrong_calls().items())[message]
    with pytest.raises(ShapeError) as caught:
        call()
    assert text in str(caught.value)


def test_fewer_than_one_thread_is_refused():
    from minilora.kernels import native

    x, w = normal(3, 5), normal(5)
    for call in (
        lambda: native.rms_norm_forward(x, w, 1e-5, 0),
        lambda: native.layer_norm_forward(x, w, w, 1e-5, 0),
        lambda: native.silu_forward(x, 0),
        lambda: native.embedding_forward(np.array([0]), x, 0),
    ):
        with pytest.raises(ValueError, match="n_threads must be at least 1, got 0"):
            call()
