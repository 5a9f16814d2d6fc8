"""``minilora eval``: token-weighted loss and perplexity on examples that were not trained on."""

from __future__ import annotations

import argparse
import json
import math
import time

from minilora.cli.model import add_model_arguments, check_lengths, open_model, say_data
from minilora.errors import ConfigError, MiniloraError

EXAMPLE = """example:
  minilora eval --model smollm2-135m --adapter runs/first --data test.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Measure the loss of a model, with or without an adapter; every counted token weighs the same."
    parser.epilog = EXAMPLE
    add_model_arguments(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="held-out examples, JSONL as for train")
    parser.add_argument("--batch-size", type=int, metavar="N", default=8, help="examples at a time (default: 8)")
    parser.add_argument(
        "--max-length", type=int, metavar="N", default=512, help="tokens; longer examples are cut (default: 512)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for flag, value, least in (("--batch-size", args.batch_size, 1), ("--max-length", args.max_length, 2)):
        if value < least:
            raise ConfigError(f"{flag} {value}: wanted a whole number >= {least}")
    from minilora.data import encode_examples, read_examples
    from minilora.training import evaluate

    records = read_examples(args.data)
    model, tokenizer, _ = open_model(args)
    data = encode_examples(records, tokenizer, max_length=args.max_length)
    check_lengths([data], model)
    began = time.perf_counter()
    loss, tokens = evaluate(model, data, batch_size=args.batch_size)
    if not math.isfinite(loss):
        raise MiniloraError(f"the loss on {args.data} is {loss}; the model or the adapter is damaged")
    facts = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # of more, a float holds no power
        "tokens": tokens,
        "examples": len(data),
        "seconds": time.perf_counter() - began,
    }
    if args.json:
        print(json.dumps(facts))
        return 0
    say_data(print, args.data, data)
    print(f"loss     {loss:.4f} nats a token, over {tokens:,} counted tokens")
    print(f"         perplexity {facts['perplexity']:.2f}")
    return 0
