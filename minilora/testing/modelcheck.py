"""check_lora_invariants: what every layer and model with a low-rank adapter obeys, whatever it computes. NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minilora.lora import LoraConfig
from minilora.nn import Module
from minilora.testing.invariants import INVARIANTS
from minilora.testing.subject import Subject


def check_lora_invariants(
    model_or_factory: Module | Callable[[], Module], inputs: Sequence[Any] | None = None,
    config: LoraConfig | None = None, *, seed: int = 0,
) -> None:  # fmt: skip
    """Fail unless a layer or model obeys every law of low-rank adaptation.

    model_or_factory  a function that makes a fresh layer or model (its weights may differ from call to call), or
                      one to work on copies of
    inputs            what it is called with: arrays whose first axis is the row of a batch. None: token ids where
                      it has an Embedding, else random rows for its first Linear
    config            the adapter's settings; None: rank 2 on every Linear

    - With B = 0 it computes the same, bit for bit; so it does with the adapter switched off.
    - Its own weights never change, through training steps of the adapter.
    - Merging W + scale · A B into the weights computes the same as attaching, within rounding.
    - Only A and B are added to what gets gradients, and both get one.
    - The update is linear in scale; rank 0 changes nothing, full rank makes any W; dropout acts in training
      only, on the update only, and keeps its mean.
    - The order of the rows of a batch does not matter, within rounding: blocks of a product may round differently.

    AssertionError that names every law that does not hold. ConfigError where there is nothing to attach to.
    """
    subject = Subject(model_or_factory, inputs, config, seed)
    faults = []
    for name, law in INVARIANTS.items():
        try:
            law(subject)
        except AssertionError as error:
            faults.append(f"  {name}: {error}")
    if faults:
        raise AssertionError("check_lora_invariants: these laws do not hold\n" + "\n".join(faults))
