"""``minilora train``: fine-tune a model on a JSONL file and write the adapter, metrics and settings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from minilora.cli.interrupt import catching_signals
from minilora.cli.model import add_threads_argument, check_lengths, count_parameters, say_data, set_threads
from minilora.cli.progress import Lines, progress
from minilora.errors import ConfigError
from minilora.training import Evaluated, Saved, Started, Step, TrainConfig, lora_config, steps
from minilora.training.config import refuse_unknown
from minilora.training.runfile import read_run

EXAMPLE = """example:
  minilora train --model smollm2-135m --data train.jsonl --eval-data test.jsonl --out runs/first --epochs 3

The data has one JSON object a line, all of one kind:
  {"prompt": "...", "completion": "..."}     the completion is learnt; both are used literally
  {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
  {"text": "..."}                            all of it is learnt
"""
# Settings of a run that are not TrainConfig's; run.yaml holds both kinds.
PATHS = ("model", "data", "eval_data", "out")
_DEFAULTS = TrainConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Fine-tune a model on your examples with a low-rank adapter."
    parser.epilog = EXAMPLE
    files = parser.add_argument_group("files")
    _option(files, "--model", str, "M", "a folder, a .gguf file, or a packaged name: smollm2-135m")
    _option(files, "--data", str, "FILE", "training examples, JSONL")
    _option(files, "--eval-data", str, "FILE", "held-out examples, JSONL: their loss is shown before, during, after")
    _option(files, "--out", str, "DIR", "folder for the adapter, metrics.jsonl and run.yaml; new or empty")
    _option(files, "--config", str, "FILE", "settings from a run.yaml; flags override it")
    length = parser.add_argument_group("length of the run")
    _option(length, "--steps", int, "N", "optimiser steps")
    _option(length, "--epochs", int, "N", "or passes over the data", "3")
    _option(length, "--batch-size", int, "N", "examples in one forward pass")
    _option(length, "--accumulate", int, "N", "forward passes in one step")
    _option(length, "--max-length", int, "N", "tokens; longer examples are cut")
    length.add_argument(
        "--gradient-checkpointing", action="store_true", default=argparse.SUPPRESS,
        help="compute each layer again in backward: less memory, a third more time",
    )  # fmt: skip
    learning = parser.add_argument_group("learning")
    _option(learning, "--lr", float, "X", "largest learning rate")
    _option(learning, "--schedule", str, "S", "cosine, linear or constant")
    _option(learning, "--warmup", float, "X", "steps over which lr rises; below 1: a share of the run")
    _option(learning, "--weight-decay", float, "X", "of AdamW")
    _option(learning, "--max-grad-norm", float, "X", "clip the gradients' joint norm; inf: never")
    _option(learning, "--seed", int, "N", "of the order of examples and the adapter's start")
    adapter = parser.add_argument_group("adapter")
    _option(adapter, "--rank", int, "R", "rank of A and B", dest="r")
    _option(adapter, "--alpha", float, "X", "scale times rank", "2 x rank", dest="lora_alpha")
    _option(
        adapter, "--targets", str, "T", "all-linear, module names (q_proj,v_proj) or a regular expression",
        dest="target_modules",
    )  # fmt: skip
    _option(adapter, "--dropout", float, "X", "share of the adapter's inputs dropped in training", dest="lora_dropout")
    adapter.add_argument(
        "--rslora", dest="use_rslora", action="store_true", default=argparse.SUPPRESS, help="scale by 1/sqrt(rank)"
    )
    reports = parser.add_argument_group("reports")
    _option(reports, "--eval-every", int, "N", "steps between held-out losses", "at the start and end only")
    _option(reports, "--save-every", int, "N", "steps between saves", "at the end only")
    reports.add_argument("--json", action="store_true", help="print the result as one JSON object; progress: stderr")
    add_threads_argument(parser)
    parser.set_defaults(run=run)


def _option(
    group: Any, flag: str, kind: Callable[[str], Any], metavar: str, does: str, default: str = "", *, dest: str = ""
) -> None:
    """Add an option that leaves no trace unless it is given, so that a file's setting can stand."""
    dest = dest or flag.removeprefix("--").replace("-", "_")
    value = getattr(_DEFAULTS, dest, None)
    shown = default or (f"{value:g}" if isinstance(value, float) else "" if value is None else str(value))
    does += f" (default: {shown})" if shown else ""
    group.add_argument(flag, type=kind, metavar=metavar, dest=dest, default=argparse.SUPPRESS, help=does)


def run(args: argparse.Namespace) -> int:
    paths, config, threads = settings(vars(args))
    stream = sys.stderr if args.json else sys.stdout
    with progress(stream) as shown:
        facts, code = _train(paths, config, threads, shown)
    if args.json:
        print(json.dumps(facts))
    _say_result(Lines(stream), facts)
    return code


def settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], TrainConfig, int | None]:
    """Merge the flags into the settings of --config, and check them; return (paths, settings, threads)."""
    known = [*PATHS, "threads", *(field.name for field in dataclasses.fields(TrainConfig))]
    flags = {name: value for name, value in given.items() if name in known}
    if "target_modules" in flags:
        flags["target_modules"] = target_names(flags["target_modules"])
    file = given.get("config")
    where = str(file or "settings")
    merged = read_run(file) if file else {}
    refuse_unknown(merged, known, where=where)
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in flags and other not in flags:
            merged.pop(other, None)  # the flag alone says how long the run is
    merged.update(flags)
    paths = {name: merged.pop(name, None) for name in PATHS}
    for name, value in paths.items():
        if not (value is None or isinstance(value, str)):
            raise ConfigError(f"{where}: {name} is {value!r}, wanted a path")
    missing = [f"--{name}" for name in ("model", "data", "out") if paths[name] is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} missing; give it as an option, or in a --config file")
    threads = merged.pop("threads", None)
    return paths, TrainConfig.from_mapping(merged, where=where), threads


def target_names(text: str) -> str | tuple[str, ...]:
    """Read --targets: the word all-linear, names with commas between, or else a regular expression."""
    if text == "all-linear" or not re.fullmatch(r"[\w.]+(,[\w.]+)*", text):
        return text
    return tuple(text.split(","))


def _train(
    paths: Mapping[str, Any], config: TrainConfig, threads: int | None, shown: Lines
) -> tuple[dict[str, Any], int]:
    from minilora.data import encode_examples, read_examples
    from minilora.lora import add_adapter
    from minilora.models import find_model, load_model
    from minilora.tokenizer import load_tokenizer
    from minilora.training.output import prepare_folder

    set_threads(threads)
    found = find_model(paths["model"])
    prepare_folder(paths["out"])  # what is wrong with the files is said before anything slow is done
    records = {name: read_examples(paths[name]) for name in ("data", "eval_data") if paths[name] is not None}
    tokenizer = load_tokenizer(found)
    data = {name: encode_examples(lines, tokenizer, max_length=config.max_length) for name, lines in records.items()}
    for name, dataset in data.items():
        say_data(shown.say, paths[name], dataset)
    model = load_model(found)
    check_lengths(data.values(), model)
    parameters = count_parameters(model)
    add_adapter(model, lora_config(config), seed=config.seed)
    facts: dict[str, Any] = {
        "out": paths["out"],
        "model": paths["model"],
        "trained_on": data["data"].kind,
        "examples": len(data["data"]),
        "parameters": parameters,
        "steps": 0,
        "loss": None,
        "eval_losses": [],
        "seconds": 0.0,
    }
    with catching_signals() as interrupt:
        for event in steps(
            model,
            data["data"],
            config,
            eval_data=data.get("eval_data", ()),
            out=paths["out"],
            settings={**paths, "threads": threads},
            should_stop=interrupt.reason,
        ):
            if isinstance(event, Started):
                facts["trainable"] = event.trainable
                share = event.trainable / parameters
                shown.say(f"model    {paths['model']}: {parameters:,} parameters, all frozen")
                shown.say(f"adapter  {event.trainable:,} trainable parameters ({share:.2%} of the model's)")
            elif isinstance(event, Step):
                facts.update(steps=event.step, loss=event.loss, seconds=facts["seconds"] + event.seconds)
            elif isinstance(event, Evaluated):
                facts["eval_losses"].append([event.step, event.loss])
            elif isinstance(event, Saved):
                facts["saved"] = event.step
            shown.show(event)
    return facts, interrupt.exit_code


def _say_result(shown: Lines, facts: Mapping[str, Any]) -> None:
    losses = facts["eval_losses"]
    if len(losses) > 1:
        shown.say(f"held-out loss {losses[0][1]:.4f} before, {losses[-1][1]:.4f} after {losses[-1][0]} steps")
    if "saved" in facts:
        way = "--chat" if facts["trained_on"] == "messages" else "--prompt"
        words = ["minilora", "generate", "--model", facts["model"], "--adapter", facts["out"], way]
        shown.say(f'use it: {shlex.join(words)} "..."')
