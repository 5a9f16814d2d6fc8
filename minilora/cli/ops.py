"""``minilora ops``: every operator as its record says it, for people, for programs and for docs/ops.md."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from minilora.errors import ConfigError

EXAMPLE = """examples:
  minilora ops
  minilora ops rms_norm
  minilora ops --json
"""
INTRODUCTION = """# Operators

Made from the registry by `minilora ops --markdown > docs/ops.md`; a test compares the two.

How to read a signature: an axis is a letter that must agree wherever it stands, a number, `*` (any leading axes, the
same wherever it stands), `...` (any shape that broadcasts with the others, or a Python number) or `?` (any shape);
`name?` may be None, `*name` is any number of operands, and `:weight` (may be a FrozenWeight), `:int` and `:bool` are
kinds of operands, without which one is real. *Keeps* is what a call keeps for backward if every gradient is needed;
nothing but shapes, where it is empty. *Kernel*: float32 operands are computed by compiled code.

`dropout(x, p, generator)` is no operator itself: it draws the mask for `masked_dropout`.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show every operator: signature, formula, source, kernel or not, what it saves."
    parser.epilog = EXAMPLE
    parser.add_argument("name", nargs="?", metavar="NAME", help="one operator, with its documentation")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON array, or one object with NAME")
    form.add_argument("--markdown", action="store_true", help="print the page docs/ops.md")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    found = facts()
    if args.name is not None:
        if args.markdown:
            raise ConfigError("--markdown prints the page of all operators; leave out NAME")
        one = _named(args.name, found)
        sys.stdout.write(json.dumps(one, indent=2) + "\n" if args.json else f"{_block(one)}\n\n{one['doc']}\n")
    elif args.json:
        print(json.dumps(found, indent=2))
    elif args.markdown:
        sys.stdout.write(markdown(found))
    else:
        print("\n\n".join(map(_block, found)))
    return 0


def facts() -> list[dict[str, Any]]:
    """What the record of every operator of minilora says, family by family, ready for JSON."""
    from minilora import ops
    from minilora.autograd import REGISTRY

    inside = f"{ops.__name__}."
    records = [r for r in REGISTRY.values() if r.reference.forward.__module__.startswith(inside)]
    found = [
        {
            "name": record.name,
            "family": record.reference.forward.__module__.removeprefix(inside),
            "call": f"{record.name}{_arguments(record.__signature__)}",
            "signature": str(record.signature),
            "formula": record.formula,
            "source": record.source,
            "kernel": record.kernel is not None,
            "saves": record.saves,
            "doc": inspect.getdoc(record) or "",
        }
        for record in records
    ]
    return sorted(found, key=lambda fact: (fact["family"], fact["name"]))


def _arguments(signature: inspect.Signature) -> inspect.Signature:
    """A call's arguments without their types."""
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return inspect.Signature(plain)


def _named(name: str, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = [fact["name"] for fact in found]
    if name in names:
        return found[names.index(name)]
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"there is no operator {name!r}{hint}\n  minilora ops lists them all")


def _block(fact: dict[str, Any]) -> str:
    """An operator in a few lines."""
    lines = (
        ("signature", fact["signature"]),
        ("formula", fact["formula"]),
        ("saves", fact["saves"] or "nothing but shapes"),
        ("kernel", "yes, for float32" if fact["kernel"] else "no"),
        ("source", fact["source"]),
    )
    return "\n".join([fact["call"], *(f"  {name:10} {value}" for name, value in lines)])


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """The page docs/ops.md: a table for each family."""
    parts = [INTRODUCTION]
    for family, those in groupby(found, key=lambda fact: fact["family"]):
        parts.append(f"## {family}\n")
        parts.append("| Call | Signature | Formula | Keeps | Kernel | Source |\n|---|---|---|---|---|---|")
        for fact in those:
            code = (f"`{fact[key]}`" if fact[key] else "" for key in ("call", "signature", "formula"))
            text = (fact["saves"], "yes" if fact["kernel"] else "", fact["source"])
            cells = (*code, *(re.sub(r"([*_<])", r"\\\1", cell) for cell in text))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts)
