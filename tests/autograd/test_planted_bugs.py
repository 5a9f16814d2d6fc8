"""The laws reject operators that are wrong in one way each. Checkers need enemies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from minilora.autograd import REGISTRY, Index, Interval
from minilora.testing import opcheck
from minilora.testing.differences import Tally
from minilora.testing.draws import draw

FAST = settings(
    max_examples=25, phases=[Phase.generate], database=None, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def good_forward(x, w):
    y = x @ w
    return y * y, (x, w, y)


def good_vjp(grad, saved, need):
    x, w, y = saved
    g = 2 * y * grad
    count = int(np.prod(x.shape[:-1]))
    grad_w = x.reshape(count, x.shape[-1]).T @ g.reshape(count, g.shape[-1])
    return g @ w.T if need[0] else None, grad_w if need[1] else None


def changed(**parts):
    """The good vjp with some gradients passed through a function."""

    def vjp(grad, saved, need):
        grads = dict(zip("xw", good_vjp(grad, saved, need), strict=True))
        for name, change in parts.items():
            if grads[name] is not None:
                grads[name] = change(grads[name])
        return grads["x"], grads["w"]

    return vjp


def one_element_off(g):
    g = np.array(g)
    if g.size > 2:
        g.flat[g.size // 2] *= 1.01
    return g


def first_off_by(amount):
    def change(g):
        g = np.array(g)
        if g.size:
            g.flat[0] += amount
        return g

    return change


def swapped_if_square(g):
    return g.T if g.ndim == 2 and g.shape[0] == g.shape[1] else g


def missing_term(grad, saved, need):
    _, w, y = saved
    return (y * grad) @ w.T if need[0] else None, good_vjp(grad, saved, need)[1]


def ignores_need(grad, saved, need):
    return good_vjp(grad, saved, (True, True))


def wrong_where_the_other_is_not_needed(grad, saved, need):
    grad_x, grad_w = good_vjp(grad, saved, need)
    return grad_x, grad_w if grad_w is None or need[0] else 2 * grad_w


def writes_to_cotangent(grad, saved, need):
    grad *= 2
    return good_vjp(grad / 2, saved, need)


def writes_to_saved(grad, saved, need):
    parts = good_vjp(grad, saved, need)
    saved[2].flags.writeable = True
    saved[2][...] *= 2
    return parts


def wrong_for_strided_cotangents(grad, saved, need):
    flat = np.lib.stride_tricks.as_strided(grad, grad.shape, np.zeros(grad.shape).strides)
    return good_vjp(flat, saved, need)


def wrong_when_empty(grad, saved, need):
    grad_x, grad_w = good_vjp(grad, saved, need)
    return grad_x, grad_w if grad_w is None or saved[0].size else grad_w + 1


def wrong_for_scale(grad, saved, need):
    return changed(x=lambda g: np.where(np.abs(g) < 1e-9, 0, g))(grad, saved, need)


def wrong_in_float32(grad, saved, need):
    return changed(w=lambda g: g * g.dtype.type(1.01 if g.dtype == np.float32 else 1))(grad, saved, need)


def list_instead_of_tuple(grad, saved, need):
    return list(good_vjp(grad, saved, need))


def too_few(grad, saved, need):
    return good_vjp(grad, saved, need)[:1]


BAD_VJPS = {
    "factor two": (changed(x=lambda g: 2 * g), opcheck.gradient_law),
    "one percent": (changed(w=lambda g: 1.01 * g), opcheck.gradient_law),
    "one in a million": (changed(x=lambda g: (1 + 1e-6) * g), opcheck.gradient_law),
    "sign": (changed(x=np.negative), opcheck.gradient_law),
    "zero": (changed(w=np.zeros_like), opcheck.gradient_law),
    "transposed": (changed(w=np.transpose), opcheck.gradient_law),
    "transposed where square": (changed(w=swapped_if_square), opcheck.gradient_law),
    "missing term": (missing_term, opcheck.gradient_law),
    "nan": (changed(x=lambda g: g * np.nan), opcheck.gradient_law),
    "infinite": (changed(w=lambda g: g + np.inf), opcheck.gradient_law),
    "none": (lambda grad, saved, need: (None, good_vjp(grad, saved, need)[1]), opcheck.gradient_law),
    "one element by one percent": (changed(x=one_element_off), opcheck.gradient_law),
    "one element by a constant": (changed(w=first_off_by(1e-3)), opcheck.gradient_law),
    "summed over the batch": (changed(x=lambda g: g.sum(axis=0, keepdims=True)), opcheck.gradient_law),
    "tiny gradients lost": (wrong_for_scale, opcheck.gradient_law),
    "wrong dtype": (changed(x=lambda g: g.astype(np.float64)), opcheck.output_law),
    "ignores need": (ignores_need, opcheck.need_law),
    "differs by need": (wrong_where_the_other_is_not_needed, opcheck.need_law),
    "writes to the cotangent": (writes_to_cotangent, opcheck.purity_law),
    "writes to what was saved": (writes_to_saved, opcheck.purity_law),
    "wrong for strides": (wrong_for_strided_cotangents, opcheck.layout_law),
    "wrong when empty": (wrong_when_empty, opcheck.empty_law),
    "wrong in float32": (wrong_in_float32, opcheck.single_law),
    "a list": (list_instead_of_tuple, opcheck.gradient_law),
    "too few": (too_few, opcheck.gradient_law),
}


def rejecting(record):
    """The laws that reject ``record``."""
    found = []
    for law in opcheck.laws(record):
        try:
            opcheck.check(law, record, FAST)
        except Exception:
            found.append(law)
    return found


def test_the_good_operator_obeys_every_law(define):
    record = define("x[*, K], w[K, N] -> y[*, N]", source="test")(good_forward)
    record.defvjp(good_vjp)
    assert rejecting(record) == []


@pytest.mark.parametrize("bug", BAD_VJPS)
def test_a_wrong_vjp_is_rejected_by_its_law(bug, define):
    vjp, law = BAD_VJPS[bug]
    record = define("x[*, K], w[K, N] -> y[*, N]", source="test")(good_forward)
    record.defvjp(vjp)
    with pytest.raises((AssertionError, ValueError)):
        opcheck.check(law, record, FAST)


def written_forward(x, w):
    out = good_forward(x, w)
    x.flags.writeable = True  # raises where the array is a view of one that cannot be written
    x += 1
    return out


_calls = np.zeros(1)


def forward_with_memory(x, w):
    _calls[0] += 1e-9
    y, (x, w, z) = good_forward(x, w)
    return y + _calls[0], (x, w, z)


def forward_for_contiguous_only(x, w):
    return good_forward(np.lib.stride_tricks.as_strided(x, x.shape, np.zeros(x.shape).strides), w)


def forward_in_double(x, w):
    y, saved = good_forward(x, w)
    return y.astype(np.float64), saved


def forward_of_another_shape(x, w):
    y, saved = good_forward(x, w)
    return y[..., None], saved


def forward_with_warning(x, w):
    np.log(np.zeros(1))
    return good_forward(x, w)


def inexact_forward(x, w):
    y, saved = good_forward(x, w)
    return y + y.dtype.type(1e-3 if y.dtype == np.float32 else 0), saved


BAD_FORWARDS = {
    "writes to an operand": (written_forward, opcheck.purity_law),
    "differs from call to call": (forward_with_memory, opcheck.purity_law),
    "wrong for strides": (forward_for_contiguous_only, opcheck.layout_law),
    "promotes to float64": (forward_in_double, opcheck.output_law),
    "shape is not the signature's": (forward_of_another_shape, opcheck.output_law),
    "warns": (forward_with_warning, opcheck.tape_law),
    "loses half of float32's digits": (inexact_forward, opcheck.single_law),
}


@pytest.mark.parametrize("bug", BAD_FORWARDS)
def test_a_wrong_forward_is_rejected_by_its_law(bug, define):
    forward, law = BAD_FORWARDS[bug]
    record = define("x[*, K], w[K, N] -> y[*, N]", source="test")(forward)
    record.defvjp(good_vjp)
    with pytest.raises((AssertionError, ValueError, FloatingPointError, RuntimeWarning)):
        opcheck.check(law, record, FAST)


def test_an_optional_operand_that_is_used_as_if_present_is_rejected(define):
    @define("x[*, N], bias?[N] -> y[*, N]", source="test")
    def shifted(x, bias=None):
        return x + (0 if bias is None else bias), None

    @shifted.defvjp
    def _(grad, saved, need):
        return grad, grad.reshape(-1, grad.shape[-1]).sum(axis=0) if grad.size else np.zeros(grad.shape[-1])

    with pytest.raises(AssertionError, match=r"shifted: with only \['x'\] needed there is a gradient for bias"):
        opcheck.check(opcheck.optional_law, shifted, FAST)


def test_a_frozen_weight_whose_layout_is_lost_is_rejected(define):
    @define("x[*, K], w:weight[K, N] -> y[*, N]", source="test")
    def product(x, w):
        matrix = w if isinstance(w, np.ndarray) else w._stored
        return x @ matrix, (x, matrix)

    @product.defvjp
    def _(grad, saved, need):
        x, w = saved
        flat = grad.reshape(int(np.prod(grad.shape[:-1])), grad.shape[-1])
        rows = x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
        return grad @ w.T if need[0] else None, rows.T @ flat if need[1] else None

    opcheck.check(opcheck.gradient_law, product, FAST)
    with pytest.raises(AssertionError, match="product: the output with a FrozenWeight"):
        opcheck.check(opcheck.frozen_law, product, FAST)


def test_a_kernel_that_is_one_percent_off_is_rejected_and_the_reference_as_kernel_accepted(define):
    record = define("x[*, K], w[K, N] -> y[*, N]", source="test")(good_forward)
    record.defvjp(good_vjp)
    record.defkernel(good_forward)(good_vjp)
    opcheck.check(opcheck.kernel_law, record, FAST)
    record.defkernel(good_forward)(changed(w=lambda g: g * np.float32(1.01)))
    with pytest.raises(AssertionError, match="gradient for w by the kernel is off by"):
        opcheck.check(opcheck.kernel_law, record, FAST)
    record.defkernel(lambda x, w: (good_forward(x, w)[0] * np.float32(1 + 1e-4), (x, w, x @ w)))(good_vjp)
    with pytest.raises(AssertionError, match="output by the kernel is off by"):
        opcheck.check(opcheck.kernel_law, record, FAST)


def test_a_kink_is_avoided_where_the_domain_names_it_and_found_where_not(define):
    def rectified(x):
        return np.maximum(x, 0), x

    for kinks in ((0.0,), ()):
        record = define("x[*] -> y[*]", source="test", domain={"x": Interval(-1, 1, kinks)})(rectified)
        record.defvjp(lambda grad, x, need: (grad * (x > 0),))
        REGISTRY.pop("rectified")
        if kinks:
            opcheck.check(opcheck.gradient_law, record, FAST)
        else:
            with pytest.raises(AssertionError, match=r"rectified: gradient for x has a kink .* does not name"):
                opcheck.check(opcheck.gradient_law, record, settings(FAST, max_examples=200))


def test_an_operator_of_every_form_obeys_the_laws(define):
    """An index, operands of any number, a tuple of outputs and a draw of its own."""

    def draw(rng, sizes):
        rows, width = (int(n) for n in rng.integers(0, 4, 2))
        xs = tuple(rng.standard_normal((rows + 1, width)) for _ in range(rng.integers(1, 4)))
        return {"ids": rng.integers(0, rows + 1, rng.integers(0, 4)), "xs": xs}

    @define("ids:int[M], *xs[V, D] -> total[M, D], first[M, D]", source="test", draw=draw, domain={"ids": Index("V")})
    def picked(ids, xs):
        return (np.sum([x[ids] for x in xs], axis=0), xs[0][ids] ** 2), (ids, xs)

    @picked.defvjp
    def _(grads, saved, need):
        ids, xs = saved
        parts = [None]
        for i, (x, wanted) in enumerate(zip(xs, need[1:], strict=True)):
            part = np.zeros_like(x)
            np.add.at(part, ids, grads[0] + (2 * x[ids] * grads[1] if i == 0 else 0))
            parts.append(part if wanted else None)
        return tuple(parts)

    assert rejecting(picked) == []


def test_the_core_runs_without_hypothesis_and_counts(define):
    record = define("x[*, K], w[K, N] -> y[*, N]", source="test")(good_forward)
    record.defvjp(good_vjp)
    rng, tally = np.random.default_rng(0), Tally()
    call = draw(record, rng, {"*": (2,), "K": 3, "N": 2})
    opcheck.gradient_law(call, rng, tally)
    assert tally == Tally(calls=0, compared=12, discarded=0)  # each of the 6 + 6 elements


def test_a_wrong_gradient_is_reported_with_operator_operand_and_place(define):
    record = define("x[*, K], w[K, N] -> y[*, N]", source="test")(good_forward)
    record.defvjp(changed(w=one_element_off))
    call = draw(record, np.random.default_rng(0), {"*": (2,), "K": 2, "N": 2})
    with pytest.raises(AssertionError, match=r"(?s)good_forward: gradient for w is wrong .*finite difference .*vjp"):
        opcheck.gradient_law(call, np.random.default_rng(0), Tally())
