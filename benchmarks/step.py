"""A training step of SmolLM2-135M, forward, backward and AdamW, rank 16 on all linear layers, against torch + PEFT.

Every side loads the same float32 weights and the same adapter, whose B is not zero, and takes the same steps on the
same tokens: the losses must agree step by step before the times mean anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sides import Bench, Contestant, Row, verify

BATCH, TIME, IGNORED = 4, 256, -100
RANK = 16
ROUNDS = 3


def tokens(share: float) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and labels (BATCH, TIME), of which the last ``share`` of every row counts."""
    import random

    draw = random.Random(0)
    ids = [[draw.randrange(100, 40_000) for _ in range(TIME)] for _ in range(BATCH)]
    first = round(TIME * (1 - share))
    return ids, [[IGNORED] * first + row[first:] for row in ids]


def ours(
    model: str, adapter: str | None = None, share: float = 1.0, checkpointing: bool = False, stored: str = "f32"
) -> dict[str, Callable[[], Any]]:
    """minilora's step; without ``adapter`` a fresh one. stored: how the frozen weights must lie in memory."""
    import numpy as np

    import minilora as ml
    from minilora import kernels

    llama: Any = ml.load_model(model)
    found = llama.model.layers[0].mlp.up_proj.weight.storage
    if found != stored:
        raise NotImplementedError(f"{stored} weights are kept as {found}")
    if adapter is None:
        config = ml.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
        ml.add_adapter(llama, config, seed=0)
    else:
        ml.load_adapter(llama, adapter, trainable=True)
    llama.train()
    llama.gradient_checkpointing = checkpointing
    kernels.keep_freed_memory()  # as minilora.training does
    ids, labels = map(np.array, tokens(share))
    optimizer = ml.optim.AdamW(ml.adapter_parameters(llama), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = llama.loss(ids, labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return {"step": step, "frozen_bytes": lambda: frozen_bytes(llama)}


def frozen_bytes(llama: Any) -> int:
    """Bytes of the frozen weights as they are stored, each memory counted once."""
    import minilora as ml

    weights = [getattr(module, "weight", None) for _, module in llama.named_modules()]
    return sum(dict(w.memory for w in weights if isinstance(w, ml.FrozenWeight)).values())


def peft(
    model: str, threads: int, adapter: str | None = None, share: float = 1.0, checkpointing: bool = False
) -> dict[str, Callable[[], Any]]:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    torch.set_num_threads(threads)
    llama = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa")
    llama.config.use_cache = False
    if adapter is None:
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        tuned = get_peft_model(llama, config)
    else:
        tuned = PeftModel.from_pretrained(llama, adapter, is_trainable=True)
    tuned.train()
    if checkpointing:
        tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        tuned.enable_input_require_grads()
    ids, labels = map(torch.tensor, tokens(share))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = tuned(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return {"step": step}


def rows(bench: Bench) -> Iterator[Row]:
    for part in (against_peft, from_quantised, more_threads):
        yield from part(bench)
        bench.close()


def against_peft(bench: Bench) -> Iterator[Row]:
    plain = f"step, {BATCH} × {TIME} tokens"
    for what, settings, goal, memory in (
        (f"{plain}, all labelled", {}, 1.4 if bench.isa == "x86-64-v3" else 1.7, 0.45),
        (f"{plain}, 40 % labelled", {"share": 0.4}, 1.9, None),
        (f"{plain}, gradient checkpointing", {"checkpointing": True}, 1.6, 0.35),
    ):
        mine, torch = bench.enter("minilora", "step"), bench.enter("PEFT", "step", rival=True)
        yield from compete(bench, what, mine, torch, settings, goal, memory)
        bench.close()


def compete(
    bench: Bench, what: str, mine: Contestant, torch: Contestant, settings: Any, goal: float, memory: float | None
) -> Iterator[Row]:
    import smollm2

    files = {"model": str(smollm2.model_folder()), "adapter": str(smollm2.adapter_folder())}
    mine.make("ours", **files, **settings)
    torch.make("peft", **files, **settings, threads=bench.threads)
    able = [one for one in (mine, torch) if not one.lacks]
    steps = 1 if bench.short else 2  # the second loss is that of what the first step trained
    verify(what, {one.name: [one.side.call("step") for _ in range(steps)] for one in able}, 1e-4)
    result = bench.turns(able, "step", rounds=ROUNDS, warm=False)
    row = Row(what, ours=f"{result.seconds('minilora'):.2f} s", theirs="PEFT", goal=goal, note=torch.lacks)
    if not torch.lacks:
        figures = result.ratio("minilora", "PEFT")
        row.theirs, row.figure = f"PEFT {result.seconds('PEFT'):.2f} s", figures["figure"]
        row.spread = figures["spread"]
    if settings.get("share", 1.0) == 1.0 and not settings.get("checkpointing"):
        row.share = flops() / bench.roofline.peak_flops() / result.seconds("minilora")
    yield row
    if memory is not None and (mine.gigabytes or torch.lacks):
        yield Row(
            f"peak memory of {what}",
            ours=f"{mine.gigabytes:.2f} GB",
            theirs="PEFT" if torch.lacks else f"PEFT {torch.gigabytes:.2f} GB",
            figure=None if torch.lacks else mine.gigabytes / torch.gigabytes,
            goal=memory,
            at_most=True,
            unit="%",
            note=torch.lacks,
        )


def flops() -> float:
    """Multiply-adds and additions that a step with every token labelled needs at least: no gradient of a frozen W."""
    hidden, wide, keys, layers, vocabulary = 576, 1536, 192, 30, 49152
    shapes = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, wide)] * 2 + [(wide, hidden)]
    rows = BATCH * TIME
    frozen = layers * sum(2 * 2 * rows * k * n for k, n in shapes)
    low_rank = layers * sum(3 * 2 * rows * RANK * (k + n) for k, n in shapes)
    head = 2 * 2 * rows * hidden * vocabulary
    attention = layers * 7 * BATCH * TIME * TIME * hidden  # causal: half of 2 products forward and 5 backward
    return frozen + low_rank + head + attention


def from_quantised(bench: Bench) -> Iterator[Row]:
    import smollm2

    adapter = str(smollm2.adapter_folder())
    floats, quantised = bench.enter("f32", "step"), bench.enter("Q4_1", "step")
    what = f"step from the Q4_1 file, {BATCH} × {TIME} tokens"
    time_row = Row(what, theirs="own f32 step", goal=1.15, at_most=True)
    memory_row = Row(f"memory saved by the {what}", theirs="difference of the weights", goal=0.9, unit="%")
    if not quantised.make("ours", model="smollm2-135m", adapter=adapter, stored="q4_1"):
        time_row.note = memory_row.note = quantised.lacks
        yield from (time_row, memory_row)
        return
    floats.make("ours", model=str(smollm2.model_folder()), adapter=adapter)
    sides = [floats, quantised]
    verify(what, {one.name: one.side.call("step") for one in sides}, 1e-4)
    result = bench.turns(sides, "step", rounds=ROUNDS, warm=False)
    ratios = sorted(1 / ratio for ratio in result.ratios("Q4_1", "f32"))
    time_row.ours = f"{result.seconds('Q4_1'):.2f} s"
    time_row.theirs = f"own f32 step {result.seconds('f32'):.2f} s"
    time_row.figure, time_row.spread = 1 / result.ratio("Q4_1", "f32")["figure"], (ratios[0], ratios[-1])
    less = (floats.side.call("frozen_bytes") - quantised.side.call("frozen_bytes")) / 1e9
    memory_row.ours = f"{floats.gigabytes:.2f} → {quantised.gigabytes:.2f} GB"
    memory_row.theirs = f"weights {less:.2f} GB less"
    memory_row.figure = (floats.gigabytes - quantised.gigabytes) / less
    yield from (time_row, memory_row)


def more_threads(bench: Bench) -> Iterator[Row]:
    import smollm2

    files = {"model": str(smollm2.model_folder()), "adapter": str(smollm2.adapter_folder())}
    row = Row(f"step with {bench.threads} threads against 1", goal=1.85)
    if bench.threads == 1:
        yield row
        return
    many, one = bench.enter("many", "step"), bench.enter("one", "step", MINILORA_THREADS="1", OMP_NUM_THREADS="1")
    for side in (many, one):
        side.make("ours", **files)
    result = bench.turns([many, one], "step", rounds=2)
    row.ours, row.theirs = f"{result.seconds('many'):.2f} s", f"1 thread {result.seconds('one'):.2f} s"
    row.figure, row.spread = (figures := result.ratio("many", "one"))["figure"], figures["spread"]
    yield row
