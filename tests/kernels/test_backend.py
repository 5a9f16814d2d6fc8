"""The choice of backend, instruction set and threads, each in a process of its own where the environment decides."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minilora
from minilora import kernels
from minilora.errors import ConfigError

CHOICES = ("MINILORA_BACKEND", "MINILORA_ISA", "MINILORA_THREADS", "MINILORA_REQUIRE_KERNELS")
# Imports the package as if the extension had not been built.
WITHOUT_KERNEL = """
import sys
sys.modules["minilora.kernels._kernels"] = None
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name not in CHOICES}
    root = str(Path(minilora.__file__).parents[1])  # what is tested here, whether checked out or installed
    inherited["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [inherited.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environment}, capture_output=True, text=True, timeout=60
    )


def printed(code: str, **environment: str) -> str:
    done = python(code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_child_imports_the_package_that_is_tested():
    assert printed("import minilora; print(minilora.__file__)") == minilora.__file__


INFO = "from minilora import kernels; i = kernels.info(); "


@pytest.mark.native
def test_the_kernel_is_the_default_with_the_best_instruction_set():
    names = "from minilora.kernels import _kernels; print(*_kernels.instruction_sets())"
    assert printed(INFO + "print(i.backend, i.isa, i.reason, kernels.use_native())") == (
        f"native {printed(names).split()[-1]} None True"
    )


def test_reference_can_be_chosen_and_says_why():
    got = printed(INFO + "print(i.backend, i.isa, i.reason, kernels.use_native())", MINILORA_BACKEND="reference")
    assert got == "reference None MINILORA_BACKEND=reference False"


@pytest.mark.native
def test_each_instruction_set_that_runs_here_can_be_chosen():
    names = printed("from minilora.kernels import _kernels; print(*_kernels.instruction_sets())").split()
    assert names[0] == "baseline"
    for name in names:
        assert printed(INFO + "print(i.isa)", MINILORA_ISA=name) == name


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MINILORA_BACKEND", "fast", "MINILORA_BACKEND is 'fast', allowed: native, reference"),
        ("MINILORA_THREADS", "0", "MINILORA_THREADS is '0', allowed: a whole number from 1 to 1024"),
        ("MINILORA_THREADS", "two", "MINILORA_THREADS is 'two', allowed: a whole number from 1 to 1024"),
        ("MINILORA_REQUIRE_KERNELS", "yes", "MINILORA_REQUIRE_KERNELS is 'yes', allowed: 0, 1"),
        pytest.param("MINILORA_ISA", "avx9", "MINILORA_ISA is 'avx9', allowed: baseline", marks=pytest.mark.native),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_those_that_are(variable, value, message):
    done = python(INFO, **{variable: value})
    assert done.returncode != 0
    assert f"ConfigError: {message}" in done.stderr


def test_without_the_kernel_numpy_is_used_and_the_reason_given():
    got = printed(WITHOUT_KERNEL + INFO + "print(i.backend, '|', i.reason)")
    assert got.startswith("reference | ")
    assert len(got) > len("reference | ") + 10


def test_a_kernel_that_is_asked_for_but_not_in_use_is_refused_with_the_reason():
    done = python("from minilora import kernels; kernels.compiled()", MINILORA_BACKEND="reference")
    assert done.returncode != 0
    assert (
        "ConfigError: the compiled kernel is needed, but it is not in use: MINILORA_BACKEND=reference\n"
        "  call the operator in minilora.ops instead"
    ) in done.stderr


@pytest.mark.parametrize("setting", [{"MINILORA_REQUIRE_KERNELS": "1"}, {"MINILORA_BACKEND": "native"}])
def test_a_required_kernel_that_is_missing_is_an_error(setting):
    done = python(WITHOUT_KERNEL + INFO, **setting)
    assert done.returncode != 0
    (name, value), *_ = setting.items()
    assert f"ConfigError: {name}={value}, but there is no compiled kernel: " in done.stderr
    assert "build it, or unset the variable" in done.stderr


def test_threads_are_the_usable_processors_unless_said_otherwise():
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    code = "from minilora import kernels; print(kernels.info().threads)"
    assert printed(code) == str(usable)
    assert printed(code, MINILORA_THREADS="3") == "3"


@pytest.mark.native
def test_set_num_threads_is_what_info_reports():
    code = INFO + "kernels.set_num_threads(3); print(kernels.info().threads if i.openmp else 3)"
    assert printed(code) == "3"


@pytest.mark.parametrize("value", [0, -1, 1025, 1.5, True, "2"])
def test_a_number_of_threads_that_is_not_one_is_refused(value):
    with pytest.raises(ConfigError, match=r"set_num_threads: got .*, allowed: a whole number from 1 to 1024"):
        kernels.set_num_threads(value)


@pytest.mark.native
def test_a_forked_child_reports_one_thread():
    code = """
import os
from minilora import kernels
kernels.info()  # loads the kernel: a child of a process that never did may use what threads it likes
if os.fork() == 0:
    kernels.set_num_threads(2)
    print(kernels.info().threads, flush=True)
    os._exit(0)
os.wait()
"""
    assert printed(code, MINILORA_THREADS="2") == "1"


def test_the_include_folder_has_the_header_and_every_file_that_its_files_include():
    folder = Path(kernels.get_include())
    sources = [path for path in folder.iterdir() if path.suffix in (".c", ".h")]
    assert {"dispatch.c", "lora.c", "minilora.h"} <= {path.name for path in sources}
    assert "minilora_lora_forward_f32" in (folder / "minilora.h").read_text()
    assert (folder / "build.mk").exists()
    for path in sources:
        for name in re.findall(r'^#include "(.*)"', path.read_text(encoding="utf-8"), re.M):
            assert (folder / name).exists(), f"{path.name} includes {name}, which is not in {folder}"


def test_importing_the_kernels_imports_nothing_heavy():
    code = "import sys, minilora.kernels; print(sorted({name.split('.')[0] for name in sys.modules}))"
    heavy = {"torch", "scipy", "Cython", "setuptools", "tokenizers", "jinja2", "rich", "yaml", "hypothesis"}
    assert not heavy & set(eval(printed(code)))
