"""What the strategies draw is what they promise, and shrinks to cases that a person can read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from minilora.autograd import Interval
from minilora.testing import strategies

QUIET = settings(max_examples=1000, database=None, deadline=None, suppress_health_check=list(HealthCheck))
EXISTS = settings(QUIET, phases=[Phase.generate])  # without shrinking what is found
DOMAINS = [
    Interval(), Interval(0), Interval(high=80), Interval(-1, 1), Interval(1, 3), Interval(kinks=(0.0,)),
    Interval(0, 1, kinks=(0.5,)), Interval(-4, 4, kinks=(-1.0, 1.0)),
    Interval(distinct=True), Interval(0, distinct=True), Interval(kinks=(0.0,), distinct=True),
]  # fmt: skip


@given(st.sampled_from(DOMAINS), st.data())
def test_arrays_lie_inside_their_domain_off_its_kinks_and_apart(domain, data):
    x = data.draw(strategies.arrays(domain=domain))
    assert np.isfinite(x).all()
    assert np.all((x > domain.low) & (x < domain.high))
    for kink in domain.kinks:
        assert np.all(np.abs(x - kink) >= 0.005 * abs(kink))
        assert not np.any(x == kink)
    if domain.distinct:
        values = np.sort(x.ravel())
        assert np.all(np.diff(values) > 0)


@given(st.sampled_from(DOMAINS), st.data())
def test_a_number_lies_inside_its_domain(domain, data):
    x = data.draw(strategies.numbers(domain, (-12, 6)))
    assert domain.low < x < domain.high
    assert all(x != kink for kink in domain.kinks)


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("tiny", lambda a: a.size > 1 and 0 < np.abs(a).max() < 1e-11),
        ("large", lambda a: np.abs(a).max(initial=0) > 1e6),
        ("of many magnitudes", lambda a: np.count_nonzero(a) > 1 and np.ptp(np.log10(np.abs(a[a != 0]))) > 9),
        ("empty", lambda a: a.size == 0 and a.ndim == 3),
        ("of one element", lambda a: a.shape == (1,)),
        ("without axes", lambda a: a.ndim == 0),
        ("read-only", lambda a: not a.flags.writeable),
        ("in Fortran order", lambda a: a.flags.f_contiguous and not a.flags.c_contiguous),
        ("strided", lambda a: a.ndim and a.size > 1 and a.strides[-1] == 16),
        ("reversed", lambda a: a.ndim and a.size > 1 and a.strides[-1] < 0),
    ],
)  # fmt: skip
def test_arrays_of_every_kind_are_drawn(what, wanted):
    find(strategies.arrays(), wanted, settings=EXISTS)


def test_arrays_shrink_to_few_round_numbers():
    assert find(strategies.arrays(), lambda a: a.size > 2, settings=QUIET).tolist() in ([[0, 0], [0, 0]], [0, 0, 0])
    found = find(strategies.arrays(), lambda a: bool((a < 0).any()), settings=QUIET)
    assert found.size == 1
    assert found.flags.writeable
    assert float(found.ravel()[0]) == -1.0
    distinct = find(strategies.arrays(domain=Interval(distinct=True)), lambda a: a.size > 3, settings=QUIET)
    assert np.all(np.abs(distinct) <= 5)


def test_lora_problems_shrink_to_ones_and_zeros_and_reach_full_rank():
    found = find(strategies.lora_problems(), lambda p: bool((p.x @ p.A @ p.B).any()), settings=QUIET)
    assert all(a.size <= 4 and set(a.ravel()) <= {0.0, 1.0} for a in (found.x, found.W, found.A, found.B))
    assert repr(found).startswith("LoraProblem(x=[[1.0]], W=[[0.0")
    assert repr(found).endswith("scale=1.0)")
    find(strategies.lora_problems(), lambda p: p.rank == min(p.W.shape) > 2, settings=EXISTS)
    find(strategies.lora_problems(), lambda p: p.rank == 0 and p.x.ndim == 3, settings=EXISTS)


@given(strategies.lora_problems(np.float32))
def test_a_lora_problem_fits_together(problem):
    assert problem.x.dtype == problem.W.dtype == problem.A.dtype == problem.B.dtype == np.float32
    assert problem.x.shape[-1] == problem.W.shape[0] == problem.A.shape[0]
    assert problem.A.shape[1] == problem.B.shape[0] == problem.rank <= min(problem.W.shape)
    by_hand = [
        [w + problem.scale * sum(a * problem.B[k, n] for k, a in enumerate(row)) for n, w in enumerate(problem.W[m])]
        for m, row in enumerate(problem.A)
    ]
    np.testing.assert_allclose(problem.merged, np.reshape(by_hand, problem.W.shape), rtol=1e-4, atol=1e-2)


@given(strategies.token_batches(vocabulary=7))
def test_a_token_batch_has_padding_on_one_side_and_labels_of_its_own_tokens(batch):
    ids, mask, labels = batch.input_ids, batch.attention_mask, batch.labels
    assert ids.shape == mask.shape == labels.shape
    assert ids.dtype == np.int64
    assert np.all((ids >= 0) & (ids < 7))
    assert np.all(mask.sum(axis=1) >= 1)
    assert np.all(np.abs(np.diff(mask, axis=1)).sum(axis=1) <= 1)  # ones, then zeros, or the other way round
    assert np.all((labels == -100) | ((labels == ids) & (mask == 1)))
    assert mask.sum(axis=1).max() == ids.shape[1]


def test_token_batches_shrink_to_the_shortest_padding():
    found = find(strategies.token_batches(), lambda b: bool((b.attention_mask == 0).any()), settings=QUIET)
    assert found.input_ids.shape == (2, 2)
    assert not found.input_ids.any()
    assert repr(found).startswith("TokenBatch(input_ids=[[0, 0], [0, 0]], attention_mask=")


@given(strategies.broadcasting_shapes(3))
def test_broadcasting_shapes_broadcast(shapes):
    assert len(shapes) == 3
    np.broadcast_shapes(*shapes)


def test_broadcasting_shapes_are_of_every_kind_and_shrink():
    for wanted in (
        lambda s: s[0] != s[1] and 0 in s[0],
        lambda s: len(s[0]) == 1 and len(s[1]) == 3,
        lambda s: 1 in s[0] and 1 in s[1] and np.broadcast_shapes(*s) not in s,
    ):
        find(strategies.broadcasting_shapes(2), wanted, settings=EXISTS)
    assert find(strategies.broadcasting_shapes(2), lambda s: s[0] != s[1], settings=QUIET) in (
        ((2,), ()),
        ((), (2,)),
        ((1,), ()),
        ((), (1,)),
        ((2,), (1,)),
    )
