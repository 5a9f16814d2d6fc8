"""Mutation testing of the engine and the operators: change one thing in a module, and see whether a test fails.

    python tests/mutation/run.py --sample 400 --seed 0 --jobs 2

cosmic-ray makes the mutants; a seeded sample of them is tried. No file is touched: each mutant is compiled
in a forked process of its own, in place of its module, and pytest runs there. A mutant is killed where a
test fails, or hangs for longer than the limit. Mutations that only a type error could follow from (| for +),
and those inside functions that draw test data, would say nothing and are not made. Prints every survivor.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cosmic_ray.plugins
import hypothesis  # noqa: F401  (imported before the fork, so that a mutant need not)
import numpy as np  # noqa: F401
import pytest
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("minilora/autograd", "minilora/ops")
OPERATORS = [
    f"core/{name}"
    for name in (
        "AddNot", "ExceptionReplacer", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd",
        "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ReplaceFalseWithTrue", "ReplaceTrueWithFalse",
        "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Invert",
        "ZeroIterationForLoop",
        "ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_Div",
        "ReplaceBinaryOperator_Mul_Add", "ReplaceBinaryOperator_Div_Mul", "ReplaceBinaryOperator_FloorDiv_Mul",
        "ReplaceBinaryOperator_Pow_Mul", "ReplaceBinaryOperator_Mod_Add",
        "ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq",
        "ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is",
        "ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt",
        "ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt", "ReplaceComparisonOperator_Lt_GtE",
        "ReplaceComparisonOperator_Gt_LtE",
    )
]  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one module; none where ``operator`` is empty, to see that the tests pass by themselves."""

    path: Path
    operator: str
    occurrence: int
    line: int

    def source(self) -> str:
        text = self.path.read_text(encoding="utf-8")
        if not self.operator:
            return text
        return MutationVisitor.mutate_code(text, cosmic_ray.plugins.get_operator(self.operator)(), self.occurrence)

    @property
    def module(self) -> str:
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    def diff(self) -> str:
        lines = difflib.unified_diff(
            self.path.read_text(encoding="utf-8").splitlines(), self.source().splitlines(), lineterm="", n=1
        )
        return "\n".join(f"    {line}" for line in list(lines)[2:])


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a file, but for what only says what tests draw: draw functions, params, domains; and asserts."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.name.endswith("draw") or node.name.startswith("any_")):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if isinstance(node, ast.keyword) and node.arg in ("params", "domain", "draw"):  # what tests may draw
            left_out.update(range(node.value.lineno, (node.value.end_lineno or node.value.lineno) + 1))
        if isinstance(node, ast.Assert):  # our own mistakes, not behaviour
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    found = []
    for name in OPERATORS:
        operator, count = cosmic_ray.plugins.get_operator(name)(), 0
        stack = [get_ast(text)]
        positions = []
        while stack:  # in the order in which MutationVisitor counts
            node = stack.pop()
            positions.extend(start[0] for start, _ in operator.mutation_positions(node))
            stack.extend(reversed(getattr(node, "children", ())))
        for count, line in enumerate(positions):
            if line not in left_out:
                found.append(Mutant(path, name, count, line))
    return found


class InPlace(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import a mutant's source in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(self, name, path=None, target=None):
        if name != self.mutant.module:
            return None
        package = self.mutant.path.name == "__init__.py"
        spec = importlib.util.spec_from_loader(name, self, origin=str(self.mutant.path), is_package=package)
        if package:
            spec.submodule_search_locations = [str(self.mutant.path.parent)]
        return spec

    def exec_module(self, module):
        module.__file__ = str(self.mutant.path)
        exec(compile(self.mutant.source(), str(self.mutant.path), "exec"), module.__dict__)


def stages(path: Path) -> list[list[str]]:
    """What to run, the cheapest tests that are likely to notice first."""
    slow = {"test_laws.py", "test_planted_catalogue.py"}
    values = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests/ops").glob("test_*.py") if p.name not in slow)
    general = [f"tests/{name}" for name in ("autograd", "graph", "nn", "models", "generate")]
    if path.parent.name == "autograd":
        return [["tests/autograd"], values, general[1:], ["tests/ops/test_laws.py"]]
    names = [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Call) and getattr(d.func, "id", "") == "op" for d in node.decorator_list)
    ]
    own = " or ".join([f"[{name}-" for name in names] + [f"[{name}]" for name in names])
    laws = [["tests/ops/test_laws.py", "tests/ops/test_planted_catalogue.py", "-k", own]] if names else []
    return [values, *laws, general]


def verdict(mutant: Mutant, log: str, limit: int) -> str:
    """In the forked child: run the stages against the mutant; "killed" or "survived"."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.alarm(limit)
    sys.meta_path.insert(0, InPlace(mutant))
    try:
        compile(mutant.source(), str(mutant.path), "exec")
    except SyntaxError:
        return "invalid"
    for arguments in stages(mutant.path):
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--no-header", "--tb=line"]
        if pytest.main([*options, *arguments]) not in (0, 5):
            return "killed"
    return "survived"


def tried(mutants: list[Mutant], jobs: int, limit: int) -> Iterator[tuple[Mutant, str]]:
    """Yield each mutant and what became of it: killed, survived, hung, crashed or invalid."""
    running: dict[int, Mutant] = {}
    waiting = list(reversed(mutants))
    codes = {"killed": 1, "survived": 0, "invalid": 3}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                mutant = waiting.pop()
                child = os.fork()
                if child == 0:
                    os._exit(codes[verdict(mutant, f"{folder}/{os.getpid()}", limit)])
                running[child] = mutant
            pid, status = os.wait()
            if os.WIFSIGNALED(status):
                result = "hung" if os.WTERMSIG(status) == signal.SIGALRM else "crashed"
            else:
                result = next((name for name, code in codes.items() if code == os.WEXITSTATUS(status)), "killed")
            yield running.pop(pid), result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=400, help="mutants to try (default 400; 0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=900, help="seconds after which a mutant counts as hanging")
    parser.add_argument("--only", default="", help="mutate only files whose path holds this text")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    files = [p for folder in FOLDERS for p in sorted((ROOT / folder).glob("*.py")) if options.only in str(p)]
    every = [mutant for path in files for mutant in mutants(path)]
    random.Random(options.seed).shuffle(every)
    chosen = every[: options.sample or None]
    print(f"{len(every)} mutants of {len(files)} files; {len(chosen)} tried (seed {options.seed})", flush=True)

    unchanged = [Mutant(path, "", 0, 0) for path in (files[0], files[-1])]
    if any(result != "survived" for _, result in tried(unchanged, options.jobs, options.limit)):
        print("the tests fail, or are too slow, without any mutation; make them pass first")
        return 2
    outcome: Counter[str] = Counter()
    began = time.monotonic()
    for mutant, result in tried(chosen, options.jobs, options.limit):
        outcome[result] += 1
        if result == "survived":
            where = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
            print(f"survived {where} {mutant.operator.removeprefix('core/')}\n{mutant.diff()}", flush=True)
        if sum(outcome.values()) % 20 == 0:
            print(f"  {dict(outcome)} after {time.monotonic() - began:.0f} s", flush=True)
    valid = sum(outcome.values()) - outcome["invalid"]
    dead = valid - outcome["survived"]
    print(f"{dead} of {valid} killed: {dead / max(valid, 1):.1%}; {dict(outcome)} in {time.monotonic() - began:.0f} s")
    return 0 if dead >= 0.9 * valid else 1


if __name__ == "__main__":
    sys.exit(main())
