"""Eight adapters on the eight rows of one batch, against one adapter on all of them: SmolLM2-135M, forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sides import Bench, Row, milliseconds, verify

ROWS, TIMES, GOAL = 8, (1, 32, 128), 1.15


def ids(time: int) -> list[list[int]]:
    import random

    draw = random.Random(2)
    return [[draw.randrange(100, 40_000) for _ in range(time)] for _ in range(ROWS)]


def ours(model: str, adapters: list[str], mixed: bool) -> dict[str, Callable[..., Any]]:
    import numpy as np

    import minilora as ml

    llama: Any = ml.load_model(model)
    names = [f"a{number}" for number in range(len(adapters))]
    for name, folder in zip(names, adapters, strict=True):
        ml.load_adapter(llama, folder, name=name)
    llama.eval()
    batches = {time: np.array(ids(time)) for time in TIMES}
    chosen = names if mixed else names[0]

    def forward(time: int) -> Any:
        with ml.no_grad():
            return llama(batches[time], adapters=chosen).data

    if mixed:
        try:
            forward(TIMES[0])
        except ml.AdapterError:
            raise NotImplementedError("one adapter a row is not in this version") from None
    return tasks(forward)


def peft(model: str, adapters: list[str], mixed: bool, threads: int) -> dict[str, Callable[..., Any]]:
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    llama = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    llama.config.use_cache = False
    names = [f"a{number}" for number in range(len(adapters))]
    tuned = PeftModel.from_pretrained(llama, adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], adapters[1:], strict=True):
        tuned.load_adapter(folder, adapter_name=name)
    tuned.set_adapter(names[0])
    tuned.eval()
    batches = {time: torch.tensor(ids(time)) for time in TIMES}
    chosen = {"adapter_names": names} if mixed else {}
    return tasks(lambda time: tuned(batches[time], **chosen).logits)


def tasks(forward: Callable[[int], Any]) -> dict[str, Callable[..., Any]]:
    """A forward pass for each length, and some logits."""
    passes: dict[str, Callable[..., Any]] = {f"forward {time}": lambda time=time: forward(time) for time in TIMES}
    return {**passes, "some": lambda: forward(TIMES[1])[:, -1, ::500].tolist()}


def rows(bench: Bench) -> Iterator[Row]:
    import smollm2

    files = {"model": str(smollm2.model_folder()), "adapters": [str(smollm2.adapter_folder(i)) for i in range(ROWS)]}
    mine = [bench.enter("mixed", "adapters"), bench.enter("one", "adapters")]
    torch = [bench.enter("PEFT mixed", "adapters", rival=True), bench.enter("PEFT one", "adapters", rival=True)]
    for side, mixed in zip(mine, (True, False), strict=True):
        side.make("ours", **files, mixed=mixed)
    for side, mixed in zip(torch, (True, False), strict=True):
        side.make("peft", **files, mixed=mixed, threads=bench.threads)
    for pair in zip(mine, torch, strict=True):
        able = [side for side in pair if not side.lacks]
        verify("logits with several adapters", {side.name: side.side.call("some") for side in able}, 1e-4)
    for time in TIMES:
        result = bench.turns([*mine, *torch], f"forward {time}", rounds=3, seconds=0.2)
        row = Row(f"{ROWS} rows × {time} tokens with {ROWS} adapters", goal=GOAL, at_most=True, note=mine[0].lacks)
        shown = {name: milliseconds(result.seconds(name)) for name in result.times}
        if not mine[0].lacks:
            ratios = sorted(1 / ratio for ratio in result.ratios("mixed", "one"))
            row.figure, row.spread = 1 / result.ratio("mixed", "one")["figure"], (ratios[0], ratios[-1])
            row.ours = f"{shown['mixed']}; one adapter {shown['one']}"
        else:
            row.ours = f"one adapter {shown['one']}"
        if not torch[0].lacks:
            more = 1 / result.ratio("PEFT mixed", "PEFT one")["figure"]
            row.theirs = f"PEFT {shown['PEFT mixed']}; one adapter {shown['PEFT one']}: {more:.2f}×"
        yield row
