"""LayerNorm and GroupNorm as layers: what they compute, what is trained, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from minilora.autograd import tensor
from minilora.errors import ConfigError, ShapeError
from minilora.nn import GroupNorm, LayerNorm


def test_layer_norm_brings_a_row_to_mean_zero_and_variance_one_then_scales_and_shifts():
    layer = LayerNorm(np.array([2.0, 3.0, 4.0, 5.0]), np.array([10.0, 20.0, 30.0, 40.0]), eps=0.0)
    # 1, 3, 5, 7 has mean 4 and variance (9 + 1 + 1 + 9) / 4 = 5
    np.testing.assert_allclose(
        layer(np.array([1.0, 3.0, 5.0, 7.0])),
        np.array([10, 20, 30, 40]) + np.array([-6, -3, 4, 15]) / np.sqrt(5),
        rtol=1e-15,
    )
    np.testing.assert_allclose(LayerNorm(None, eps=4.0)(np.array([1.0, 3.0, 5.0, 7.0])), [-1, -1 / 3, 1 / 3, 1])


def test_group_norm_treats_each_group_of_channels_by_itself():
    layer = GroupNorm(2, np.array([1.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.0, 0.0, 100.0]), eps=0.0)
    x = np.array([[[0.0], [2.0], [50.0], [70.0]]])
    np.testing.assert_allclose(layer(x), [[[-1], [1], [-1], [102]]], rtol=1e-15)


@pytest.mark.parametrize("make", [lambda w, b: LayerNorm(w, b), lambda w, b: GroupNorm(1, w, b)])
def test_a_trained_gain_is_a_parameter_and_a_frozen_shift_is_not(make):
    layer = make(tensor(np.ones(3), requires_grad=True), np.zeros(3))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert [name for name, _ in layer.named_frozen()] == ["bias"]
    layer(np.arange(6.0).reshape(2, 3)).sum().backward()
    # both rows are -1.2247, 0, 1.2247 but for eps, and the gain multiplies them
    np.testing.assert_allclose(layer.weight.grad, [-np.sqrt(6), 0, np.sqrt(6)], rtol=1e-4, atol=1e-12)


def test_gains_and_shifts_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"LayerNorm: bias has shape \(2,\), but weight has shape \(3,\)"):
        LayerNorm(np.ones(3), np.ones(2))
    with pytest.raises(ShapeError, match=r"GroupNorm: weight has shape \(3, 1\), expected one axis"):
        GroupNorm(1, np.ones((3, 1)))
    with pytest.raises(ConfigError, match="GroupNorm: bias has 3 channels, which do not divide into 2 groups"):
        GroupNorm(2, None, np.ones(3))
    with pytest.raises(ConfigError, match="GroupNorm: weight has 3 channels, which do not divide into 0 groups"):
        GroupNorm(0, np.ones(3))
