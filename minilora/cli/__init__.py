"""The command line: finds the verb, imports only its file, and turns errors into one message and an exit code."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from minilora import __version__
from minilora.errors import ConfigError, MiniloraError

VERBS = {
    "train": "fine-tune a model on your examples",
    "generate": "let a model write",
    "eval": "loss and perplexity on held-out examples",
    "info": "what this installation can do",
    "ops": "every differentiable operator",
    "bench": "this machine's figures beside NumPy's",
}
FAILED, BAD_USAGE, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (failed), 2 (bad usage) or 128 + the signal's number."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(words)
    except SystemExit as stop:  # argparse has printed help, the version or what is wrong
        return stop.code if isinstance(stop.code, int) else BAD_USAGE
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        print("minilora: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        code = FAILED
    except Exception as error:
        if args.debug:
            raise
        print(f"minilora {args.verb}: error: {_said(error)}", file=sys.stderr)
        return BAD_USAGE if isinstance(error, ConfigError) else FAILED
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away, as in `minilora info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or FAILED
    return code


def _said(error: Exception) -> str:
    if isinstance(error, MiniloraError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory ({error})\n  a smaller --batch-size or --max-length, or a smaller model, needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}\n  this is a defect of minilora; --debug shows where it happened"


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="minilora",
        description="LoRA fine-tuning on a CPU.",
        epilog="example: minilora train --help",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"minilora {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    subs = {}
    for verb, does in VERBS.items():
        shape = argparse.RawDescriptionHelpFormatter
        sub = subs[verb] = verbs.add_parser(verb, help=does, allow_abbrev=False, formatter_class=shape)
        if verb == chosen:  # importing the others would only take time
            importlib.import_module(f"minilora.cli.{verb}").add_arguments(sub)
            sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        sub = subs[args.verb]
        given = unknown[0].split("=")[0]
        if given in sub._option_string_actions:
            sub.error(f"{given} stands before the verb; put it after {args.verb}")
        near = difflib.get_close_matches(given, sub._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sub.error(f"no such option: {unknown[0]}{hint}")
    return args
