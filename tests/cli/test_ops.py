"""``minilora ops``: every record of the registry, whole; one by name; and the page docs/ops.md made from it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from minilora import ops
from minilora.autograd import REGISTRY, Op, op
from minilora.cli.ops import facts

PAGE = Path(__file__).parents[2] / "docs" / "ops.md"
RECORDS = {name: value for name, value in vars(ops).items() if isinstance(value, Op)}


def test_json_has_every_operator_of_the_package_with_all_that_its_record_says(minilora):
    code, out, err = minilora("ops", "--json")
    assert (code, err) == (0, "")
    found = {fact["name"]: fact for fact in json.loads(out)}
    assert found.keys() == RECORDS.keys()
    for name, record in RECORDS.items():
        fact = found[name]
        assert fact["signature"] == str(record.signature)
        assert (fact["formula"], fact["source"], fact["saves"]) == (record.formula, record.source, record.saves)
        assert fact["kernel"] == (record.kernel is not None)
        assert fact["family"] == Path(inspect.getfile(record.reference.forward)).stem


def test_the_kernels_are_those_that_a_benchmark_earned(minilora):
    kernels = {fact["name"] for fact in json.loads(minilora("ops", "--json")[1]) if fact["kernel"]}
    assert {"linear", "lora_matmul"} <= kernels
    assert "add" not in kernels


def test_people_see_the_same_facts(minilora):
    code, out, _ = minilora("ops")
    assert code == 0
    blocks = out.rstrip("\n").split("\n\n")
    assert len(blocks) == len(RECORDS)
    for block, fact in zip(blocks, facts(), strict=True):
        head, *lines = block.splitlines()
        assert head == fact["call"]
        shown = dict(line.split(maxsplit=1) if len(line.split()) > 1 else (line.strip(), "") for line in lines)
        assert shown["signature"] == fact["signature"]
        assert shown["formula"] == fact["formula"]
        assert shown["source"] == fact["source"]
        assert shown["saves"] == (fact["saves"] or "nothing but shapes")
        assert shown["kernel"] == ("yes, for float32" if fact["kernel"] else "no")


def test_one_operator_is_shown_with_its_documentation(minilora):
    code, out, _ = minilora("ops", "lora_matmul")
    assert code == 0
    assert out.startswith("lora_matmul(x, W, A, B, scale=1.0, bias=None)\n  signature  x[*, K], W:weight[K, N]")
    assert out.endswith(f"\n\n{inspect.getdoc(ops.lora_matmul)}\n")
    assert json.loads(minilora("ops", "lora_matmul", "--json")[1])["call"] == out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rms_nrom",), "there is no operator 'rms_nrom'; did you mean rms_norm?\n  minilora ops lists them all"),
        (("qqqq",), "there is no operator 'qqqq'\n  minilora ops lists them all"),
        (("add", "--markdown"), "--markdown prints the page of all operators; leave out NAME"),
    ],
)
def test_bad_usage_is_one_sentence(minilora, words, message):
    code, out, err = minilora("ops", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"minilora ops: error: {message}")
    assert "Traceback" not in err


def test_operators_of_others_are_left_out(minilora):
    @op("x[*] -> y[*]", source="somebody else")
    def stranger(x):
        return x, None

    try:
        assert "stranger" not in {fact["name"] for fact in facts()}
    finally:
        del REGISTRY["stranger"]


def test_the_page_in_docs_is_what_the_registry_gives(minilora):
    page = minilora("ops", "--markdown")[1]
    assert PAGE.read_text(encoding="utf-8") == page, "write it again: python -m minilora ops --markdown > docs/ops.md"


def test_the_page_has_a_row_of_six_cells_for_every_operator(minilora):
    rows = [line for line in minilora("ops", "--markdown")[1].splitlines() if line.startswith("| `")]
    assert [re.match(r"\| `(\w+)\(", row)[1] for row in rows] == [fact["name"] for fact in facts()]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)
