"""``minilora generate``: continue a text or answer a message, token by token."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from minilora.cli.model import add_model_arguments, open_model, warn
from minilora.errors import ConfigError

EXAMPLE = """examples:
  minilora generate --model smollm2-135m --chat "Name three rivers."
  minilora generate --model smollm2-135m --adapter runs/first --prompt "lights on in the kitchen ->"
"""
_DEFAULT_LENGTH = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Continue a text, or answer a message, as it is written."
    parser.epilog = EXAMPLE
    add_model_arguments(parser)
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="text to continue, taken literally")
    text.add_argument("--chat", metavar="TEXT", help="a message to answer, put through the model's chat template")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"at most (default: {_DEFAULT_LENGTH}, or what fits)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", default=0.0, help="0 takes the likeliest token (default: 0)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", default=0, help="of the draws above temperature 0 (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, not a stream")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {args.max_new_tokens}: wanted a whole number >= 1")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: wanted a whole number >= 0")
    from minilora.generate import Sampling, stream

    sampling = Sampling(args.temperature)
    model, tokenizer, notes = open_model(args)
    _warn_of_other_kind(args, notes)
    ids = _prompt_ids(args, tokenizer)
    room = model.config.max_position_embeddings - len(ids)
    limit = args.max_new_tokens or min(_DEFAULT_LENGTH, max(room, 1))
    if room < limit:
        raise ConfigError(
            f"--max-new-tokens {limit}: the prompt has {len(ids)} tokens and the model "
            f"{model.config.max_position_embeddings} positions, which leaves {max(room, 0)}"
        )
    stops = {*model.config.eos_token_ids, *tokenizer.eos_token_ids}
    decoder, text, new, began = tokenizer.stream(), "", 0, time.perf_counter()
    ended = "length"
    for tokens in stream(model, [ids], max_new_tokens=limit, stop=stops, sampling=sampling, seed=args.seed):
        token = int(tokens[0])
        if token in stops:
            ended = "end token"
            break
        new += 1
        text += _shown(decoder.push(token), quiet=args.json)
    text += _shown(decoder.finish(), quiet=args.json)
    seconds = time.perf_counter() - began
    if args.json:
        facts = {"text": text, "prompt_tokens": len(ids), "new_tokens": new, "ended": ended, "seconds": seconds}
        print(json.dumps(facts))
    elif not text.endswith("\n"):
        print()
    return 0


def _prompt_ids(args: argparse.Namespace, tokenizer: Any) -> list[int]:
    if args.chat is not None:
        message = {"role": "user", "content": args.chat}
        ids: list[int] = tokenizer.apply_chat_template([message], tokenize=True, add_generation_prompt=True)
        return ids
    ids = tokenizer.encode(args.prompt, parse_special=False)
    if not ids:
        raise ConfigError("--prompt is empty; give at least one character to continue")
    return ids


def _shown(text: str, *, quiet: bool) -> str:
    if not quiet:
        sys.stdout.write(text)
        sys.stdout.flush()
    return text


def _warn_of_other_kind(args: argparse.Namespace, notes: Mapping[str, str]) -> None:
    """Warn where an adapter that learnt chats is given plain text, or the other way round."""
    trained = notes.get("trained_on")
    if trained == "messages" and args.prompt is not None:
        warn("this adapter was trained on chat messages; --chat puts the text through the template it knows")
    if trained in ("completion", "text") and args.chat is not None:
        warn("this adapter was trained on plain text; --prompt gives it the text as it is, as in training")
