"""The derivations are right: each page's Python runs, and its C computes what its NumPy does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minilora as ml

PAGES = ("attention", "cross_entropy", "lora_matmul", "rms_norm")
PARTS = ("Formula", "Gradient", "What is kept", "C")
KERNEL = sorted(path.stem for path in Path(ml.get_include()).glob("*.c") if path.stem != "dispatch")


@pytest.fixture(params=PAGES)
def derivation(request, page):
    return page(f"derivations/{request.param}.md")


def csrc(name):
    return Path(ml.get_include(), name)


def test_every_derivation_is_tested_and_listed(page):
    index = page("derivations/README.md")
    found = sorted(path.stem for path in index.path.parent.glob("*.md") if path.stem != "README")
    assert found == list(PAGES)
    assert sorted(re.findall(r"\]\((\w+)\.md\)", index.text)) == found


def test_a_derivation_has_its_four_parts_in_order(derivation):
    assert tuple(h for h in re.findall(r"^## (.*)$", derivation.text, re.M) if h in PARTS) == PARTS


def test_formula_gradient_and_what_is_kept_hold_in_numpy(derivation):
    derivation.run(derivation.before("C"))


@pytest.mark.compiler
def test_the_c_of_a_derivation_computes_what_its_numpy_does(derivation, page, tmp_path):
    load_c = page("derivations/README.md").run()["load_c"]
    if derivation.path.stem == "lora_matmul":
        flags = ("-ffp-contract=off", "-fopenmp-simd", f"-I{ml.get_include()}")
        c = load_c([csrc(f"{name}.c") for name in KERNEL], tmp_path / "page.so", *flags)
    else:
        (tmp_path / "page.c").write_text("\n".join(derivation.blocks("c")), encoding="utf-8")
        c = load_c([tmp_path / "page.c"], tmp_path / "page.so")
    derivation.run(c=c)


def test_the_kernel_that_lora_matmul_quotes_is_the_one_in_csrc(page):
    derivation = page("derivations/lora_matmul.md")
    sources = [csrc(f"{name}.c").read_text(encoding="utf-8") for name in KERNEL]
    sources += [csrc(name).read_text(encoding="utf-8") for name in ("internal.h", "minilora.h")]
    excerpts = derivation.blocks("c")
    assert len(excerpts) == 4
    for excerpt in excerpts:
        assert any(excerpt in source for source in sources), f"not in csrc:\n{excerpt}"
    words = set(re.findall(r"\w+", "".join(sources)))
    names = set(re.findall(r"`(\w+)`", derivation.section("C"))) - {"hstack", "vstack", "cut"}
    assert len(names) > 15
    assert names <= words, f"names that csrc does not have: {names - words}"
