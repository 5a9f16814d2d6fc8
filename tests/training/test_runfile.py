"""run.yaml: any YAML reader gives back what was written, and bad files are refused by name and line."""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import ConfigError, FormatError
from minilora.training.config import TrainConfig
from minilora.training.runfile import read_run, write_run

# Surrogates are what Python makes of path bytes that are not UTF-8.
texts = st.text() | st.text(st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Lo", "So"]))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = scalars | st.lists(scalars, max_size=3)


@given(settings=st.dictionaries(st.sampled_from(["lr", "data", "steps", "x"]), values), note=values)
def test_a_yaml_reader_gives_back_every_value_and_type(tmp_path_factory, settings, note):
    path = tmp_path_factory.getbasetemp() / "run.yaml"
    write_run(path, settings, {"note": note})
    found = yaml.safe_load(path.read_bytes())
    assert found == {"schema": 1, **settings, "record": {"note": note}}
    assert [type(v) for v in settings.values()] == [type(found[k]) for k in settings]
    assert read_run(path) == settings


@pytest.mark.parametrize("number", [1e-5, 1e16, 1e-300, math.inf, -math.inf, 0.1, 3.0])
def test_floats_stay_floats(tmp_path, number):
    write_run(tmp_path / "run.yaml", {"lr": number}, {})
    assert read_run(tmp_path / "run.yaml") == {"lr": number}


def test_a_whole_configuration_survives(tmp_path):
    config = TrainConfig(steps=5, lr=3e-5, target_modules=("q_proj", "v_proj"), max_grad_norm=math.inf)
    write_run(tmp_path / "run.yaml", dataclasses.asdict(config.resolved(1)), {})
    assert TrainConfig.from_mapping(read_run(tmp_path / "run.yaml")) == config.resolved(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"lr: 0.1\nsteps: [1, 2\n", r"run.yaml:3: not YAML: "),
        (b"lr: \xff", r"run.yaml: not YAML: "),
        (b"lr: \x00", r"run.yaml: not YAML: "),
        (b"[" * 5000, r"run.yaml: not YAML: "),
        (b"when: 2026-99-99", r"run.yaml: not YAML: "),
        (b"- 1", r"run.yaml: holds no settings; wanted lines like `lr: 0.001`"),
        (b"1: 2", r"run.yaml: holds no settings"),
        (b"schema: 2", r"run.yaml: schema 2, this minilora reads 1; a newer minilora wrote it\?"),
        (b"#\n" * (1 << 20), r"run.yaml: more than 1048576 bytes"),
        (b"x: !!python/object/apply:os.system ['true']", r"run.yaml:1: not YAML: "),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(text)
    with pytest.raises(FormatError, match=message):
        read_run(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read the settings: No such file"):
        read_run(tmp_path / "none.yaml")


def test_an_empty_file_holds_no_settings(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"# nothing yet\n")
    assert read_run(tmp_path / "run.yaml") == {}
