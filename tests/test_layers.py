"""The architecture as a test: imports point down, nothing below cli talks to the terminal, the engine stays small."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import minilora

ROOT = Path(minilora.__file__).resolve().parent
FILES = sorted(ROOT.rglob("*.py"))

LAYERS = {
    "errors": 0,
    "kernels": 1, "formats": 1, "tokenizer": 1, "signature": 1,
    "autograd": 2,
    "ops": 3,
    "nn": 4, "optim": 4, "generate": 4, "graph": 4,
    "models": 5, "lora": 5,
    "training": 6, "data": 6, "benchmark": 6,
    "cli": 7, "serve": 7,
}  # fmt: skip
STRANGERS = {("lora", "models"), ("models", "lora")}  # of one layer, but neither may know the other
TESTING = 5.5  # may import up to layer 5
READS_ENVIRONMENT = ("kernels/__init__.py", "autograd/registry.py")
# The main programs of child processes, which talk through their pipes.
OWN_PROCESS = {"tokenizer/render.py", "benchmark/sides.py"}
REPORTS_AT_EXIT = {"graph/trace.py"}  # where the user set MINILORA_TRACE
ENGINE_LINES = 400


def package(path):
    """The part of minilora that a file or dotted name belongs to; "" for the top."""
    parts = path.relative_to(ROOT).with_suffix("").parts if isinstance(path, Path) else path.split(".")[1:]
    return "" if not parts or parts[0] in ("__init__", "__main__") else parts[0]


def imports(path, tree):
    """Yield (line, dotted name) for every import from minilora, also inside functions."""
    here = ["minilora", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "minilora")
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "minilora":
                yield from ((node.lineno, f"minilora.{a.name}") for a in node.names)
            elif module.startswith("minilora."):
                yield node.lineno, module


def layer_faults(path, tree):
    """Sentences about imports of ``path`` that the layers forbid."""
    part, where = package(path), path.relative_to(ROOT.parent)
    if part == "":
        return
    level = TESTING if part == "testing" else LAYERS.get(part)
    if level is None:
        yield f"{where} is in no layer; add {part!r} to LAYERS here and to the architecture page"
        return
    for line, name in imports(path, tree):
        target = package(name)
        if target == "testing" and part != "testing":
            yield f"{where}:{line} imports {name}, but nothing in the library may import testing"
        elif target not in LAYERS and target != part and name != "minilora.__version__":
            yield f"{where}:{line} imports {name}, which is in no layer; import from the module that defines it"
        elif LAYERS.get(target, 0) > level:
            yield (
                f"{where}:{line} imports {name}, but {part} is in layer {level} and {target} in {LAYERS[target]}; "
                "an import may only point down"
            )
        elif (part, target) in STRANGERS:
            yield f"{where}:{line} imports {name}, but {part} and {target} may not know each other"


def manner_faults(path, tree):
    """Sentences about printing, parsing arguments, exiting and environment variables below cli."""
    part, where = package(path), path.relative_to(ROOT.parent)
    if part == "cli" or path.name == "__main__.py":
        return
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if called in ("print", "input", "exit"):
            yield f"{where}:{line} calls {called}(), but only cli talks to the terminal"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            terminal = ("sys.exit", "sys.argv", "sys.stdout", "sys.stderr", "sys.stdin", "os._exit")
            if dotted in terminal and _inside(path) not in OWN_PROCESS | REPORTS_AT_EXIT:
                yield f"{where}:{line} uses {dotted}, but only cli talks to the terminal and exits"
            if dotted in ("os.environ", "os.getenv", "os.putenv") and _inside(path) not in READS_ENVIRONMENT:
                yield f"{where}:{line} uses {dotted}; only {' and '.join(READS_ENVIRONMENT)} read it"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.split(".")[0] in ("argparse", "optparse", "getopt", "click", "rich") for name in names):
            yield f"{where}:{line} imports {names[0]}, but only cli parses arguments and draws on the terminal"
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "sys"):
            hidden = {"environ", "getenv", "exit", "argv", "stdout", "stderr"} & {a.name for a in node.names}
            yield from (f"{where}:{line} imports {name} from {node.module}; write it out" for name in sorted(hidden))


def _inside(path):
    return path.relative_to(ROOT).as_posix()


def lines_of_code(text):
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines.update(range(token.start[0], token.end[0] + 1) if token.string else ())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def faults(check):
    return [sentence for path in FILES for sentence in check(path, ast.parse(path.read_text(encoding="utf-8")))]


def test_every_import_points_to_a_lower_layer():
    found = faults(layer_faults)
    assert not found, "\n".join(found)


def test_nothing_below_cli_prints_parses_arguments_exits_or_reads_the_environment():
    found = faults(manner_faults)
    assert not found, "\n".join(found)


def test_the_autograd_package_is_small_enough_to_read():
    files = [p for p in FILES if package(p) == "autograd"]
    total = sum(lines_of_code(p.read_text(encoding="utf-8")) for p in files)
    assert 100 < total <= ENGINE_LINES, f"minilora/autograd has {total} lines of code, the limit is {ENGINE_LINES}"


def test_only_numpy_is_imported_at_the_top_of_a_file_below_cli():
    import sys

    allowed = {*sys.stdlib_module_names, "numpy", "minilora", "__future__"}
    found = [
        f"{path.relative_to(ROOT.parent)}:{node.lineno} imports {name}; import it in the function that needs it"
        for path in FILES
        if package(path) not in ("cli", "testing")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or "minilora"])
        if name.split(".")[0] not in allowed
    ]
    assert not found, "\n".join(found)


def test_hypothesis_is_imported_only_by_the_strategies_and_the_law_runner():
    found = {
        path.name
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and "hypothesis" in ast.unparse(node)
    }
    assert found == {"strategies.py", "opcheck.py"}


@pytest.mark.parametrize(
    ("where", "code", "sentence"),
    [
        ("ops/x.py", "import minilora.nn", "imports minilora.nn, but ops is in layer 3 and nn in 4"),
        ("ops/x.py", "def f():\n    from minilora import models", "imports minilora.models, but ops is in layer 3"),
        ("ops/x.py", "from ..training import loop", "imports minilora.training, but ops"),
        ("lora/x.py", "from minilora.models import llama", "lora and models may not know each other"),
        ("models/x.py", "from minilora.lora import attach", "models and lora may not know each other"),
        ("nn/x.py", "from minilora.testing import opcheck", "nothing in the library may import testing"),
        ("ops/x.py", "from minilora import tensor", "imports minilora.tensor, which is in no layer"),
        ("new/x.py", "import os", "is in no layer"),
        ("errors.py", "from minilora.kernels import info", "errors is in layer 0 and kernels in 1"),
    ],
)
def test_a_planted_import_is_reported_in_a_sentence(where, code, sentence):
    found = list(layer_faults(ROOT / where, ast.parse(code)))
    assert len(found) == 1
    assert sentence in found[0]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("print(1)", "calls print(), but only cli"),
        ("import argparse", "imports argparse, but only cli"),
        ("import sys\nsys.exit(1)", "uses sys.exit"),
        ("import os\nos.environ['A']", "uses os.environ; only "),
        ("import os\nos.getenv('A')", "uses os.getenv"),
        ("from os import environ", "imports environ from os"),
        ("from rich.console import Console", "imports rich.console, but only cli"),
    ],
)
def test_a_planted_bad_manner_is_reported_in_a_sentence(code, sentence):
    found = list(manner_faults(ROOT / "training" / "loop.py", ast.parse(code)))
    assert len(found) == 1
    assert sentence in found[0]
    assert not list(manner_faults(ROOT / "cli" / "main.py", ast.parse(code)))


def test_lines_of_code_are_counted_without_docstrings_comments_and_blanks():
    text = '"""Doc.\n\nstring"""\n\n# why\nx = 1  # one\n\ndef f():\n    """Doc."""\n    return (\n        x\n    )\n'
    assert lines_of_code(text) == 5
