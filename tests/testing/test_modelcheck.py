"""The laws of low-rank adaptation hold for layers and a tiny Llama, and each rejects what breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_llama import write_model

from minilora import ops
from minilora.autograd import Tensor, tensor
from minilora.errors import ConfigError
from minilora.kernels import FrozenWeight
from minilora.lora import LoraConfig, adapter_layers
from minilora.models import load_model
from minilora.nn import Linear, LowRank, Module
from minilora.testing import check_lora_invariants
from minilora.testing.invariants import INVARIANTS
from minilora.testing.subject import NAME, Subject


def weight(rows=6, columns=5, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype)


def frozen_layer(kind=Linear, dtype=np.float32):
    return kind.from_weight(FrozenWeight(weight(dtype=dtype)), weight(1, 5, dtype)[0])


class TwoLayers(Module):
    """Two layers with a bend between them, and a parameter of its own."""

    def __init__(self):
        self.up, self.down = frozen_layer(), Linear.from_weight(FrozenWeight(weight(5, 3)))
        self.gain = tensor(np.ones(3, np.float32), requires_grad=True)

    def __call__(self, x):
        return self.down(ops.silu(self.up(x))) * self.gain


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder)
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_frozen_layer_obeys_every_law(dtype):
    check_lora_invariants(lambda: frozen_layer(dtype=dtype))


def test_a_layer_with_a_trained_weight_obeys_every_law():
    check_lora_invariants(lambda: Linear(8, 6))
    check_lora_invariants(lambda: Linear(1, 1), config=LoraConfig(r=1, target_modules="all-linear"))


def test_a_model_obeys_every_law_whatever_the_settings():
    check_lora_invariants(TwoLayers)
    for settings in ({"r": 5, "lora_alpha": 1}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}):
        check_lora_invariants(TwoLayers, config=LoraConfig(target_modules=("up", "down"), **settings))


def test_one_layer_may_be_given_in_place_of_a_factory_and_stays_as_it_is():
    layer = frozen_layer()
    check_lora_invariants(layer)
    assert layer.adapters == {}
    assert layer.adapter_choice is None


def test_a_tiny_llama_obeys_every_law(llama):
    check_lora_invariants(lambda: load_model(llama))
    check_lora_invariants(
        lambda: load_model(llama),
        [np.array([[5, 6, 7], [8, 9, 10]])],
        LoraConfig(r=3, target_modules=("q_proj", "v_proj")),
    )


class Fault(Linear):
    """A layer that is wrong in one way; ``right`` is what it should compute."""

    def right(self, x):
        return Linear.__call__(self, x)


class ChangesTheStart(Fault):
    def __call__(self, x):
        return self.right(x) if self.active_adapter() is None else self.right(x) * np.float32(1 + 2e-7)


class DoesNothing(Fault):
    def __call__(self, x):
        return ops.linear(x, self.weight, self.bias)


class StaysOn(Fault):
    """The adapter acts even where adapters are disabled."""

    def __call__(self, x):
        low = next(iter(self.adapters.values()), None)
        return ops.linear(x, self.weight, self.bias) + (0.0 if low is None else low(x))


class TrainsItsWeight(Fault):
    """Every call of a recorded graph moves W a little, as a forgotten weight decay would."""

    def __call__(self, x):
        if self.active_adapter() is not None and self.active_adapter().training:
            self.weight = FrozenWeight(self.weight.dequantize() * np.float32(0.999))
        return self.right(x)


class ScalesTwice(Fault):
    """The update is scaled by scale²."""

    def __call__(self, x):
        low = self.active_adapter()
        return self.right(x) if low is None else ops.linear(x, self.weight, self.bias) + low(x) * low.scale


class CutsTheGraph(Fault):
    """The article's fault: the sum is wrapped in a new tensor, so A and B get nothing."""

    def __call__(self, x):
        low = self.active_adapter()
        if low is None:
            return self.right(x)
        W = self.weight.dequantize() + low.scale * (low.A.data @ low.B.data)
        return ops.linear(x, tensor(W, requires_grad=True), self.bias)


class ForgetsB(Fault):
    """B is taken for a constant."""

    def __call__(self, x):
        low = self.active_adapter()
        if low is None:
            return self.right(x)
        return ops.lora_matmul(x, self.weight, low.A, low.B.data, low.scale, self.bias)


class AddsAParameter(Fault):
    def __call__(self, x):
        return self.right(x)

    @property
    def choice(self):
        return self.__dict__.get("choice")

    @choice.setter
    def choice(self, value):
        self.__dict__["choice"] = value
        if value is not None:
            self.magnitude = tensor(np.ones(1, np.float32), requires_grad=True)


class ClipsTheScale(Fault):
    def __call__(self, x):
        low = self.active_adapter()
        if low is None or low.scale <= 2:
            return self.right(x)
        return ops.lora_matmul(x, self.weight, low.A, low.B, 2.0, self.bias)


class NeedsARank(Fault):
    """An adapter of rank 0 adds something."""

    def __call__(self, x):
        low = self.active_adapter()
        return self.right(x) + (1e-6 if low is not None and low.A.shape[1] == 0 else 0.0)


class LosesARank(Fault):
    """The last column of A is dropped where the rank is full."""

    def __call__(self, x):
        low = self.active_adapter()
        if low is None or low.A.shape[1] < min(self.weight.shape):
            return self.right(x)
        kept = LowRank(tensor(low.A.data[:, :-1]), tensor(low.B.data[:-1]), low.scale)
        return ops.linear(x, self.weight, self.bias) + kept(x)


class AlwaysDrops(Fault):
    """Dropout also in evaluation."""

    def __call__(self, x):
        low = self.active_adapter()
        if low is None or not low.dropout:
            return self.right(x)
        low.training = True
        return self.right(x)


class NeverDrops(Fault):
    def __call__(self, x):
        low = self.active_adapter()
        if low is not None:
            low.training = False
        return self.right(x)


class DropsWithoutScaling(Fault):
    """1 / (1 - p) is forgotten, so the mean of the update is half of what it should be."""

    def __call__(self, x):
        low = self.active_adapter()
        if low is None or not (low.training and low.dropout):
            return self.right(x)
        return ops.linear(x, self.weight, self.bias) + low(x) * (1 - low.dropout)


class SeesOtherRows(Fault):
    """Each row also sees the first row of the batch."""

    def __call__(self, x):
        x = x.data if isinstance(x, Tensor) else x
        return self.right(x + np.float32(1e-4) * x[:1]) if x.ndim > 1 and len(x) > 1 else self.right(x)


FAULTS = {
    "B = 0 changes nothing": (ChangesTheStart, DoesNothing, StaysOn),
    "the weights never change": (TrainsItsWeight,),
    "merging equals attaching": (ScalesTwice, DoesNothing),
    "only A and B get gradients": (CutsTheGraph, ForgetsB, AddsAParameter),
    "the update is linear in scale": (ClipsTheScale, ScalesTwice),
    "rank 0 is nothing and full rank anything": (NeedsARank, LosesARank),
    "dropout acts in training only": (AlwaysDrops, NeverDrops, DropsWithoutScaling),
    "the order of rows does not matter": (SeesOtherRows,),
}


def test_every_law_has_a_fault_that_it_should_reject():
    assert FAULTS.keys() == INVARIANTS.keys()


@pytest.mark.parametrize(("law", "fault"), [(law, fault) for law, faults in FAULTS.items() for fault in faults])
def test_a_fault_is_rejected_by_its_law(law, fault):
    def make():
        return frozen_layer(fault)

    with pytest.raises(AssertionError):
        INVARIANTS[law](Subject(make, None, None, 0))
    with pytest.raises(AssertionError, match=f"these laws do not hold\n(.*\n)*  {law}: "):
        check_lora_invariants(make)


def test_a_scale_that_is_not_alpha_over_r_is_rejected():
    class Halved(Subject):
        def adapted(self, *args, **kwargs):
            model = super().adapted(*args, **kwargs)
            for _, low in adapter_layers(model, NAME):
                low.scale /= 2
            return model

    with pytest.raises(AssertionError, match=r"the scale of the layer is 0\.75, expected 1\.5"):
        INVARIANTS["the update is linear in scale"](Halved(frozen_layer, None, None, 0))


def test_all_laws_that_do_not_hold_are_named_at_once():
    with pytest.raises(AssertionError) as caught:
        check_lora_invariants(lambda: frozen_layer(ScalesTwice))
    assert "merging equals attaching: the merged weights compute something else: off by" in str(caught.value)
    assert "the update is linear in scale: " in str(caught.value)


def test_what_cannot_carry_an_adapter_is_a_config_error():
    with pytest.raises(ConfigError, match="there is no Linear to attach an adapter to"):
        check_lora_invariants(Module)
    with pytest.raises(ConfigError, match="the factory made int, wanted a minilora Module"):
        check_lora_invariants(lambda: 3)
