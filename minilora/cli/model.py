"""What the verbs share: the options --model, --adapter and --threads, and opening what they name."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from minilora.errors import ConfigError

if TYPE_CHECKING:
    from minilora.data import Dataset


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``open_model`` reads."""
    parser.add_argument(
        "--model", required=True, metavar="M", help="a folder, a .gguf file, or a packaged name: smollm2-135m"
    )
    parser.add_argument("--adapter", metavar="DIR", help="adapter to use (a PEFT folder)")
    add_threads_argument(parser)


def add_threads_argument(parser: argparse.ArgumentParser) -> None:
    """Add --threads; its default lets an unused option be told from a given one."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="threads of the kernels (default: all cores)",
    )


def set_threads(threads: int | None) -> None:
    """Use this many threads from here on; None leaves the choice to the kernels."""
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"--threads {threads}: wanted a whole number >= 1")
    from minilora import kernels

    kernels.set_num_threads(threads)


def open_model(args: argparse.Namespace) -> tuple[Any, Any, Mapping[str, str]]:
    """Return model and tokenizer of --model, and what --adapter, loaded and active, notes of its training."""
    from minilora.lora import load_adapter
    from minilora.models import find_model, load_model
    from minilora.tokenizer import load_tokenizer

    set_threads(getattr(args, "threads", None))
    path = find_model(args.model)
    tokenizer = load_tokenizer(path)
    model = load_model(path)
    model.eval()
    notes = load_adapter(model, args.adapter).metadata if args.adapter is not None else {}
    return model, tokenizer, notes


def say_data(say: Callable[[str], None], path: str, data: Dataset) -> None:
    """Tell how many examples a file holds, of what kind, and what was done to make them fit."""
    say(f"data     {path}: {len(data):,} examples ({data.kind}), at most {data.longest:,} tokens")
    for text in data.warnings():
        say(f"         {text}")


def check_lengths(datasets: Iterable[Dataset], model: Any) -> None:
    """Raise ConfigError for examples with more tokens than the model has positions."""
    positions = model.config.max_position_embeddings
    longest = max(len(example) for data in datasets for example in data.examples)
    if longest > positions:
        raise ConfigError(
            f"--max-length: an example has {longest} tokens, but the model has {positions} positions; "
            f"give --max-length {positions} or less"
        )


def count_parameters(model: Any) -> int:
    """Return how many numbers the model's frozen weights hold; a table that is also the head counts once."""
    return sum(math.prod(weight.shape) for _, weight in model.named_frozen())


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"minilora: warning: {text}", file=sys.stderr)
