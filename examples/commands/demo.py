"""Teach SmolLM2-135M to turn requests into JSON commands, on this machine's CPU, and show what it learned.

    python examples/commands/demo.py --seed 0

The base model is scored on held-out requests, fine-tuned with LoRA, and scored again. Ends with exit
code 1 if a frozen weight changed, if the base model could do the task already (--base-at-most), or if the
tuned model answers fewer requests right than --require. Ctrl-C during training keeps what was trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml
from minilora import kernels
from minilora.cli.interrupt import catching_signals
from minilora.cli.progress import clock, memory, progress
from minilora.data import Record, encode_examples, left_pad, read_examples, rows_by_length
from minilora.generate import KVCache
from minilora.models import find_model
from minilora.training import Evaluated, Step, TrainConfig, lora_config, steps
from minilora.training.output import prepare_folder

HERE = Path(__file__).resolve().parent
SHOWN = 3  # answers printed before and after
ROOM = 48  # tokens of an answer; the longest command in the data has 42


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model said to each request, and the share that is the expected command, character for character."""

    texts: list[str]
    score: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    args = _arguments(argv)
    try:
        return run(ml.load_model(args.model), ml.load_tokenizer(args.model), find_model(args.model), args)
    except ml.MiniloraError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def run(model: Any, tokenizer: Any, path: Path, args: argparse.Namespace) -> int:
    """Score, train, score again, and say what came of it."""
    began = time.perf_counter()
    out = _output_folder(args)
    test = read_examples(HERE / "test.jsonl")[: args.requests]
    config = TrainConfig(steps=args.steps, batch_size=8, lr=1e-3, r=8, lora_alpha=16, seed=args.seed)
    train, valid = (
        encode_examples(read_examples(HERE / file), tokenizer, max_length=config.max_length)
        for file in ("train.jsonl", "valid.jsonl")
    )
    _announce(path, len(test), len(train), config, tokenizer, test)

    before_sha = model.frozen_sha256()
    _heading("1  The base model, before any training")
    plain = answer(model, tokenizer, test)
    print(f"exact match: {_share(plain, test)}")
    _show(test, plain)
    primer = (HERE / "instructions.txt").read_text(encoding="utf-8")
    shown = answer(model, tokenizer, test, primer=primer)
    print(f"exact match with the schema and three examples in its prompt: {_share(shown, test)}")

    _heading("2  Fine-tuning with LoRA")
    ml.add_adapter(model, lora_config(config), seed=config.seed)
    trained = sum(p.data.size for p in ml.adapter_parameters(model))
    frozen = sum(math.prod(weight.shape) for _, weight in model.named_frozen())
    print(f"trained: {trained:,} numbers (A and B of every linear layer), frozen: {frozen:,}")
    done, losses = [], []
    settings = {"model": args.model}
    with catching_signals() as interrupt, progress(sys.stdout) as display:
        stop = interrupt.reason
        for event in steps(model, train, config, eval_data=valid, out=out, settings=settings, should_stop=stop):
            display.show(event)
            if isinstance(event, Step):
                done.append(event)
            elif isinstance(event, Evaluated):
                losses.append(event.loss)
    if interrupt.exit_code:
        return interrupt.exit_code
    print(f"held-out loss: {losses[0]:.3f} before, {losses[-1]:.3f} after")

    _heading("3  The same model with the adapter")
    tuned = answer(model, tokenizer, test)
    print(f"exact match: {_share(tuned, test)}")
    _show(test, tuned)

    _heading("4  The account")
    seconds = sorted(step.seconds for step in done)[len(done) // 2]
    weights = out / "adapter_model.safetensors"
    print(f"time a step:    {seconds:.2f} s (median), {sum(s.processed for s in done) / len(done):.0f} tokens a step")
    print(f"peak memory:    {memory()}")
    print(f"adapter:        {weights.stat().st_size / 1e6:.1f} MB beside a model of {_size(path) / 1e6:.1f} MB")
    after_sha = model.frozen_sha256()
    same = before_sha == after_sha
    print(f"frozen weights: {before_sha[:16]}… before, {after_sha[:16]}… after: {'unchanged' if same else 'CHANGED'}")
    print(f"whole demo:     {clock(time.perf_counter() - began)} min")

    if not same:
        print("\nfailed: a frozen weight changed during training", file=sys.stderr)
        return 1
    if plain.score > args.base_at_most:
        print(f"\nfailed: the base model alone has {plain.score:.1%} exact match: nothing to learn", file=sys.stderr)
        return 1
    if tuned.score < args.require:
        print(f"\nfailed: {tuned.score:.1%} exact match, at least {args.require:.0%} required", file=sys.stderr)
        return 1
    _try_next(args.model, out)
    return 0


def answer(model: Any, tokenizer: Any, test: Sequence[Record], *, primer: str = "", batch: int = 40) -> Answers:
    """Let the model answer every request, greedily, in left-padded batches; ``primer`` stands before each."""
    shared = KVCache()
    if primer:  # all requests continue the same cached prefix
        with ml.no_grad():
            model([tokenizer.encode(primer, parse_special=False)], cache=shared, logits_to_keep=1)
    stops = (*tokenizer.eos_token_ids, *tokenizer.encode("\n", parse_special=False))  # a command is one line
    prompts = [tokenizer.encode(record.fields["prompt"], parse_special=False) for record in test]
    texts = [""] * len(test)
    for rows in rows_by_length([len(prompt) for prompt in prompts], batch):
        ids, mask = left_pad([prompts[i] for i in rows])
        mask = np.concatenate([np.ones((len(rows), shared.length), bool), mask], axis=1)
        cache = shared.select(np.zeros(len(rows), np.int64))
        out = model.generate(ids, mask, max_new_tokens=ROOM, stop=stops, cache=cache)[:, ids.shape[1] :]
        for i, row in zip(rows, out.tolist(), strict=True):
            end = next((at for at, token in enumerate(row) if token in stops), len(row))
            texts[i] = tokenizer.decode(row[:end]).strip()
    right = sum(text == _command(record) for text, record in zip(texts, test, strict=True))
    return Answers(texts, right / len(test))


def _announce(path: Path, requests: int, examples: int, config: TrainConfig, tokenizer: Any, test: Any) -> None:
    info = kernels.info()
    print(f"minilora {ml.__version__}, {info.backend} backend, {info.threads} threads, numpy {np.__version__}")
    print(f"model:  {path.name}")
    print(f"task:   {requests} held-out requests, each to be answered with one JSON command, for example")
    print(f"        {_request(test[0])}  ->  {_command(test[0])}")
    print(f"method: LoRA of rank {config.r} on all linear layers, {config.steps} steps of {config.batch_size} "
          f"out of {examples} examples, seed {config.seed}")  # fmt: skip
    print(f"This takes about {_estimate(config, requests):.1f} min here.")


def _estimate(config: TrainConfig, requests: int) -> float:
    """Minutes that the demo will take, from the speed of one large product on this machine."""
    x, w = np.ones((512, 576), np.float32), ml.FrozenWeight(np.ones((1536, 576), np.float32).T)
    rates = []
    for _ in range(10):
        began = time.perf_counter()
        ml.ops.linear(x, w)
        rates.append(time.perf_counter() - began)
    rate = 2 * 512 * 576 * 1536 / sorted(rates)[len(rates) // 2]
    # 106 million weights in the layers: two products with each a token to decode, four to train.
    work = 2 * 106e6 * (2 * 420 * (config.steps or 0) + requests * 3 * 75)
    return 2.0 * work / rate / 60  # twice the products alone, as measured


def _heading(text: str) -> None:
    print(f"\n--- {text} ---")


def _request(record: Record) -> str:
    return record.fields["prompt"].removeprefix("Request: ").removesuffix("\nCommand:")


def _command(record: Record) -> str:
    return record.fields["completion"].strip()


def _show(test: Sequence[Record], answers: Answers) -> None:
    for record, text in list(zip(test, answers.texts, strict=True))[:SHOWN]:
        mark = "right" if text == _command(record) else "wrong"
        print(f"  {_request(record)}\n    {mark}: {text or '(nothing)'}")


def _share(answers: Answers, test: Sequence[Record]) -> str:
    return f"{answers.score:.1%} of {len(test)}"


def _output_folder(args: argparse.Namespace) -> Path:
    """An empty folder for the adapter. Only the demo's own default one is replaced if it is there already."""
    if args.out is not None:
        return prepare_folder(args.out)
    out = Path("runs") / f"demo-seed{args.seed}"
    if out.exists():
        shutil.rmtree(out)
    return prepare_folder(out)


def _size(path: Path) -> int:
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _try_next(model: str, out: Path) -> None:
    _heading("Try next")
    prompt = r"$'Request: wake me at 6:45 am\nCommand:'"
    print(f".venv/bin/minilora generate --model {model} --adapter {out} --prompt {prompt}")
    print(f".venv/bin/minilora eval --model {model} --adapter {out} --data examples/commands/test.jsonl")
    print(f".venv/bin/minilora train --model {model} --data YOUR.jsonl --out runs/mine")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="folder, .gguf file or packaged name")
    parser.add_argument("--seed", type=int, default=0, help="of the adapter's start and the order of examples")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--requests", type=int, default=None, help="held-out requests to answer (default: all)")
    parser.add_argument("--require", type=float, default=0.95, help="smallest share of right answers to succeed")
    parser.add_argument("--base-at-most", type=float, default=0.10, help="largest share for the base model")
    parser.add_argument("--out", type=Path, default=None, help="folder for the adapter (default: runs/demo-seedN)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
