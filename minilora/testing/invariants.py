"""The laws of low-rank adaptation. Each looks at fresh copies of one layer or model. NumPy only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora.autograd import Tensor, tensor
from minilora.lora import adapter_layers, adapter_parameters, adapters_disabled
from minilora.nn import Linear, LowRank, Module
from minilora.testing.subject import NAME, Subject, matrix, weights_of
from minilora.testing.tolerance import POINTWISE

Array = NDArray[Any]
DRAWS = 256  # of a dropout mask, to see its mean
SIGMAS = 6


def zero_B_changes_nothing(subject: Subject) -> None:
    model = subject.plain()
    before = subject.call(model)
    subject.adapted(model, zero=True)
    for mode in (False, True):
        model.train(mode)
        off = np.abs(subject.call(model) - before).max(initial=0.0)
        _require(off == 0, f"with B = 0 the output differs by {off:.3e}, expected the same bits (training={mode})")
    for _, low in adapter_layers(model, NAME):
        low.B.writable()[...] = subject.rng.standard_normal(low.B.shape)
    _require(not np.array_equal(subject.call(model), before), "even with B ≠ 0 the adapter changes nothing")
    with adapters_disabled(model):
        _require(np.array_equal(subject.call(model), before), "with adapters disabled the output is not that before")


def weights_never_change(subject: Subject) -> None:
    model = subject.plain()
    own = [value for _, value in model.named_parameters()]
    before = _digest(model, own)
    subject.adapted(model, zero=True).train()
    for _ in range(3):
        _backward(subject, model)
        for factor in adapter_parameters(model, NAME):
            if factor.grad is not None:
                factor.writable()[...] -= 0.1 * factor.grad
    _require(_digest(model, own) == before, "a weight of its own changed while the adapter was trained")


def merging_equals_attaching(subject: Subject) -> None:
    model = subject.adapted()
    attached, rank = subject.call(model), subject.config.r
    layers = {path: module for path, module in model.named_modules() if isinstance(module, Linear)}
    merged = {layers[path]: _merged(layers[path], low) for path, low in adapter_layers(model, NAME)}
    with adapters_disabled(model), weights_of(merged):
        off = float(np.abs(subject.call(model) - attached).max(initial=0.0))
        bound = subject.rounding(model, POINTWISE + rank)
    _require(off <= bound, f"the merged weights compute something else: off by {off:.3e}, allowed {bound:.3e}")


def only_A_and_B_get_gradients(subject: Subject) -> None:
    model = subject.plain()
    own = {id(value) for _, value in model.named_parameters()}
    subject.adapted(model, zero=True)
    added = {path: value for path, value in model.named_parameters() if id(value) not in own}
    factors = {id(f): f for _, low in adapter_layers(model, NAME) for f in (low.A, low.B)}
    strangers = [path for path, value in added.items() if id(value) not in factors]
    _require(not strangers, f"attaching makes other tensors require a gradient: {', '.join(strangers)}")
    _require({id(f) for f in adapter_parameters(model, NAME)} == factors.keys(), "adapter_parameters are not A and B")
    _backward(subject, model)
    for path, low in adapter_layers(model, NAME):
        _require(low.B.grad is not None and bool(low.B.grad.any()), f"B of {path or 'the layer'} gets no gradient")
        _require(low.A.grad is None or not low.A.grad.any(), f"A of {path or 'the layer'} gets a gradient while B is 0")
        low.B.writable()[...] = subject.rng.standard_normal(low.B.shape)
    _backward(subject, model)
    for path, low in adapter_layers(model, NAME):
        _require(low.A.grad is not None and bool(low.A.grad.any()), f"A of {path or 'the layer'} gets no gradient")


def scale_is_linear(subject: Subject) -> None:
    model = subject.adapted()
    for path, layer, low in _layers(model):
        wanted = subject.config.scale(path)
        _require(low.scale == wanted, f"the scale of {path or 'the layer'} is {low.scale}, expected {wanted}")
        x = _rows(subject, layer)
        outs = []
        for factor in (0.0, 1.0, 2.0, -1.0):
            low.scale = factor * wanted
            outs.append(subject.call(layer, (x,)).astype(np.float64))
        low.scale = wanted
        once, bound = outs[1] - outs[0], 4 * _bound(layer, low, x)
        for factor, out in zip((2.0, -1.0), outs[2:], strict=True):
            off = np.abs(out - outs[0] - factor * once)
            _require(bool(np.all(off <= bound)), f"{factor} times the scale is not {factor} times the update of {path}")


def rank_zero_and_full_rank(subject: Subject) -> None:
    model = subject.adapted()
    for path, layer, low in _layers(model):
        (into, out), x = layer.weight.shape, _rows(subject, layer)
        dtype = low.A.dtype
        with adapters_disabled(model):
            plain = subject.call(layer, (x,))
        layer.adapters[NAME] = LowRank(tensor(np.zeros((into, 0), dtype)), tensor(np.zeros((0, out), dtype)), low.scale)
        _require(
            np.array_equal(subject.call(layer, (x,)), plain), f"an adapter of rank 0 changes {path or 'the layer'}"
        )
        change = subject.rng.standard_normal((into, out)).astype(dtype)
        A, B = (np.eye(into, dtype=dtype), change) if into <= out else (change, np.eye(out, dtype=dtype))
        full = layer.adapters[NAME] = LowRank(tensor(A), tensor(B), low.scale)
        want = plain + low.scale * (x.astype(np.float64) @ change)
        off = np.abs(subject.call(layer, (x,)) - want)
        _require(
            bool(np.all(off <= 4 * _bound(layer, full, x))),
            f"full rank does not add scale · A B to {path or 'the layer'}",
        )
        layer.adapters[NAME] = low


def dropout_acts_in_training_only(subject: Subject) -> None:
    model = subject.adapted(lora_dropout=0.5)
    for path, layer, low in _layers(model):
        x, where = _rows(subject, layer), path or "the layer"
        with adapters_disabled(model):
            plain = subject.call(layer, (x,))
        low.dropout = 0.0
        wanted = subject.call(layer, (x,))
        low.dropout = 0.5
        _require(np.array_equal(subject.call(layer, (x,)), wanted), f"dropout acts on {where} in evaluation")
        low.train()
        update = wanted.astype(np.float64) - plain
        _require(bool(update.any()), f"the adapter of {where} adds nothing")
        outs = np.stack([subject.call(layer, (x,)).astype(np.float64) - plain for _ in range(DRAWS)])
        low.eval()
        _require(not np.array_equal(outs[0], outs[1]), f"dropout does not act on {where} in training")
        shares = np.tensordot(outs, update, update.ndim) / np.sum(update**2)
        off, allowed = abs(float(shares.mean()) - 1), SIGMAS * float(shares.std()) / DRAWS**0.5
        _require(off <= allowed, f"dropout changes the mean update of {where} by {off:.2f}, allowed {allowed:.2f}")


def rows_in_any_order(subject: Subject) -> None:
    model = subject.adapted()
    want = subject.call(model)
    order = np.roll(np.arange(len(want)), 1)[::-1]
    got = subject.call(model, [x[order] if np.ndim(x) else x for x in subject.inputs])
    off, bound = float(np.abs(got - want[order]).max(initial=0.0)), subject.rounding(model)
    _require(off <= bound, f"rows of a batch in another order give other rows: off by {off:.3e}, allowed {bound:.3e}")


INVARIANTS: dict[str, Callable[[Subject], None]] = {
    "B = 0 changes nothing": zero_B_changes_nothing,
    "the weights never change": weights_never_change,
    "merging equals attaching": merging_equals_attaching,
    "only A and B get gradients": only_A_and_B_get_gradients,
    "the update is linear in scale": scale_is_linear,
    "rank 0 is nothing and full rank anything": rank_zero_and_full_rank,
    "dropout acts in training only": dropout_acts_in_training_only,
    "the order of rows does not matter": rows_in_any_order,
}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _backward(subject: Subject, model: Module) -> None:
    out = model(*subject.inputs)
    out = out[0] if isinstance(out, tuple | list) else out
    _require(isinstance(out, Tensor) and out.requires_grad, "the output has no gradient to give: the graph is cut")
    for _, value in model.named_parameters():
        value.grad = None
    out.backward(subject.rng.standard_normal(out.shape).astype(out.dtype))


def _layers(model: Module) -> Iterator[tuple[str, Linear, LowRank]]:
    modules = dict(model.named_modules())
    for path, low in adapter_layers(model, NAME):
        layer = modules[path]
        assert isinstance(layer, Linear)
        yield path, layer, low


def _rows(subject: Subject, layer: Linear) -> Array:
    return subject.rng.standard_normal((5, layer.in_features)).astype(layer.weight.dtype)


def _merged(layer: Linear, low: LowRank) -> Array:
    W = matrix(layer)
    return np.asarray(W.astype(np.float64) + low.scale * (low.A.data.astype(np.float64) @ low.B.data), W.dtype)


def _bound(layer: Linear, low: LowRank, x: Array) -> Array:
    """How far y = x W + scale · (x A) B + bias may be off, an element each: roundings times the terms' size."""
    rows = np.abs(x.astype(np.float64))
    size = rows @ np.abs(matrix(layer)) + 2 * abs(low.scale) * (rows @ np.abs(low.A.data) @ np.abs(low.B.data))
    if layer.bias is not None:
        size = size + np.abs(layer.bias.data if isinstance(layer.bias, Tensor) else layer.bias)
    return np.asarray((POINTWISE + sum(low.A.shape)) * float(np.finfo(x.dtype).eps) * size)


def _digest(model: Module, own: Sequence[Tensor]) -> str:
    """Every weight that the model had before, read from live memory."""
    total = hashlib.sha256(model.frozen_sha256().encode())
    for value in own:
        total.update(np.ascontiguousarray(value.data).data)
    return total.hexdigest()
