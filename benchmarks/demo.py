"""The demo's training step, with its data and batches: the compiled kernels against the NumPy backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sides import Bench, Row, verify

DATA = Path(__file__).resolve().parent.parent / "examples" / "commands" / "train.jsonl"
GOAL = 1.3


def ours() -> dict[str, Callable[[], Any]]:
    import minilora as ml
    from minilora.data import TrainingBatches, encode_examples, read_examples
    from minilora.models import find_model
    from minilora.training import TrainConfig, accumulate_gradients, lora_config

    path = find_model("smollm2-135m")
    model, tokenizer = ml.load_model(path), ml.load_tokenizer(path)
    config = TrainConfig(steps=1, lr=1e-3)
    ml.add_adapter(model, lora_config(config), seed=0)
    examples = encode_examples(read_examples(DATA), tokenizer, max_length=512).examples
    batches = TrainingBatches(examples, batch_size=config.batch_size, seed=0)
    optimizer = ml.optim.AdamW(list(ml.adapter_parameters(model)), lr=config.lr)

    def step() -> float:
        batch = next(batches)
        optimizer.zero_grad()
        loss, _ = accumulate_gradients(model, [batch])
        ml.optim.clip_grad_norm(optimizer.params, config.max_grad_norm)
        optimizer.step()
        return float(loss)

    return {"step": step}


def rows(bench: Bench) -> Iterator[Row]:
    native = bench.enter("kernels", "demo", MINILORA_BACKEND="native")
    reference = bench.enter(
        "NumPy backend", "demo", MINILORA_BACKEND="reference", OPENBLAS_NUM_THREADS=str(bench.threads)
    )
    sides = [native, reference]
    for side in sides:
        side.make("ours")
    # The same batches from the same start, several times, since B is zero at the first.
    verify("demo's losses", {one.name: [one.side.call("step") for _ in range(2)] for one in sides}, 1e-4)
    result = bench.turns(sides, "step", rounds=5, warm=False)
    yield Row(
        "step of the demo",
        ours=f"{result.seconds('kernels'):.2f} s, {native.gigabytes:.2f} GB",
        theirs=f"NumPy backend {result.seconds('NumPy backend'):.2f} s, {reference.gigabytes:.2f} GB",
        **result.ratio("kernels", "NumPy backend"),
        goal=GOAL,
    )
    if native.gigabytes:
        yield Row(
            "peak memory of the demo's steps",
            ours=f"{native.gigabytes:.2f} GB",
            theirs=f"NumPy backend {reference.gigabytes:.2f} GB",
            figure=native.gigabytes / reference.gigabytes,
            goal=1.0,
            at_most=True,
        )
