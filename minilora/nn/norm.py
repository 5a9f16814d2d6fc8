"""Normalisation layers: RMSNorm, LayerNorm, GroupNorm."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from minilora import ops
from minilora.autograd import Tensor
from minilora.errors import ConfigError, ShapeError
from minilora.nn.module import Module

Vector = Tensor | NDArray[Any]


class RMSNorm(Module):
    """Scale rows to unit root mean square, then by ``weight`` (width,), trained or a frozen ndarray."""

    def __init__(self, weight: Vector, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: Any) -> Any:
        """x (*, width) -> (*, width)"""
        return ops.rms_norm(x, self.weight, eps=self.eps)


class LayerNorm(Module):
    """Bring rows to mean 0 and variance 1, then scale by ``weight`` and shift by ``bias``.

    weight, bias  (width,)  each trained, a frozen ndarray, or None
    """

    def __init__(self, weight: Vector | None, bias: Vector | None = None, eps: float = 1e-5) -> None:
        _check_fit("LayerNorm", weight, bias)
        self.weight, self.bias, self.eps = weight, bias, eps

    def __call__(self, x: Any) -> Any:
        """x (*, width) -> (*, width)"""
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class GroupNorm(Module):
    """Bring groups of channels to mean 0 and variance 1, then scale and shift each by its ``weight`` and ``bias``.

    num_groups                 how many groups of neighbouring channels; it divides the channels
    weight, bias  (channels,)  each trained, a frozen ndarray, or None
    """

    def __init__(self, num_groups: int, weight: Vector | None, bias: Vector | None = None, eps: float = 1e-5) -> None:
        _check_fit("GroupNorm", weight, bias)
        for name, vector in (("weight", weight), ("bias", bias)):
            if vector is not None and (num_groups < 1 or vector.shape[0] % num_groups):
                raise ConfigError(
                    f"GroupNorm: {name} has {vector.shape[0]} channels, which do not divide into {num_groups} groups"
                )
        self.num_groups, self.weight, self.bias, self.eps = num_groups, weight, bias, eps

    def __call__(self, x: Any) -> Any:
        """x (batch, channels, *) -> (batch, channels, *)"""
        return ops.group_norm(x, self.weight, self.bias, num_groups=self.num_groups, eps=self.eps)


def _check_fit(name: str, weight: Vector | None, bias: Vector | None) -> None:
    """Raise ShapeError where weight and bias are not two vectors of one length."""
    for what, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.ndim != 1:
            raise ShapeError(f"{name}: {what} has shape {vector.shape}, expected one axis")
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise ShapeError(f"{name}: bias has shape {bias.shape}, but weight has shape {weight.shape}")
