"""``minilora info``: every fact, and what is missing and why."""

from __future__ import annotations

import json

from minilora import __version__, kernels
from minilora.cli import info


def test_json_holds_every_fact(minilora):
    code, out, err = minilora("info", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    backend = kernels.info()
    assert facts["minilora"] == __version__
    assert (facts["backend"], facts["isa"], facts["threads"]) == (backend.backend, backend.isa, backend.threads)
    assert set(facts["extras"]) == {"models", "cli"}
    assert {"q4_1", "f32", "bf16"} <= set(facts["storages"])


def test_people_see_the_same_facts(minilora):
    code, out, _ = minilora("info")
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith((" ", "extra", "model")))
    assert lines["backend"] == kernels.info().backend
    assert lines["minilora"] == __version__


def test_a_missing_kernel_is_named_with_its_reason(minilora, monkeypatch):
    reason = "no C compiler was found when minilora was installed"
    missing = kernels.Backend("reference", None, 2, False, None, reason)
    monkeypatch.setattr(kernels, "info", lambda: missing)
    _, out, _ = minilora("info")
    assert f"the compiled kernel is missing: {reason}" in out
    assert json.loads(minilora("info", "--json")[1])["reason"] == reason


def test_a_kernel_that_the_environment_rules_out_is_not_called_missing(minilora, monkeypatch):
    monkeypatch.setenv("MINILORA_BACKEND", "reference")
    kernels._choose.cache_clear()
    try:
        _, out, _ = minilora("info")
    finally:
        kernels._choose.cache_clear()
    assert "the compiled kernel is not used: MINILORA_BACKEND=reference\n" in out
    assert "missing: MINILORA" not in out


def test_packaged_models_are_listed_with_their_place(minilora, monkeypatch, tmp_path):
    monkeypatch.setattr("minilora.formats.packaged.importlib.util.find_spec", lambda name: None)
    assert "model        smollm2-135m: not installed" in minilora("info")[1]
    assert json.loads(minilora("info", "--json")[1])["models"] == {"smollm2-135m": None}


def test_a_missing_extra_is_named_with_the_way_to_get_it(minilora, monkeypatch):
    monkeypatch.setitem(info.EXTRAS, "cli", (("rich", "no-such-distribution-as-this"),))
    _, out, _ = minilora("info")
    assert 'extra cli    rich (missing)   pip install "minilora[cli]"' in out
    assert json.loads(minilora("info", "--json")[1])["extras"]["cli"] == {"rich": None}


def test_a_bad_environment_variable_is_one_sentence(minilora, monkeypatch):
    monkeypatch.setenv("MINILORA_BACKEND", "fast")
    kernels._choose.cache_clear()
    try:
        code, _, err = minilora("info")
    finally:
        kernels._choose.cache_clear()
    assert code == 2
    assert "MINILORA_BACKEND is 'fast', allowed: native, reference" in err
    assert "Traceback" not in err
