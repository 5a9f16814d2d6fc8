"""The kernels as a C library: what the package carries is enough to build it, and it computes without Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minilora as ml

pytestmark = pytest.mark.compiler

EXAMPLE = Path(__file__).parents[2] / "examples" / "c"
EPS = 2.0**-24
SANITIZED = "-O1 -g -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all"


def make(folder: Path, *arguments: str, csrc: str | None = None) -> Path:
    """Build in ``folder`` by the example's Makefile, and return the folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    command = ["make", "-j2", "-C", str(EXAMPLE), f"BUILD={folder}", f"CSRC={csrc or ml.get_include()}", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make(tmp_path_factory.mktemp("built"), "FLAGS=-O2 -fopenmp", "all", "native")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    return make(tmp_path_factory.mktemp("sanitized"), f"FLAGS={SANITIZED}", "all")


@pytest.fixture(scope="module")
def posix_threads(tmp_path_factory):
    flags = "FLAGS=-O1 -DMINILORA_PTHREADS -pthread -fopenmp-simd"
    return make(tmp_path_factory.mktemp("posix"), flags, "MINILORA_ISAS=baseline", "all")


def printed(program: Path, *sizes: int) -> list[dict[str, np.ndarray]]:
    """Run the example, and return the matrices that it prints: a dictionary for each memory order of W."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [str(program), *map(str, sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    orders: list[dict[str, np.ndarray]] = []
    lines = iter(done.stdout.splitlines())
    for line in lines:
        if line.startswith("W is stored"):
            orders.append({})
        elif match := re.fullmatch(r"(\w+) (\d+) (\d+)", line):
            name, rows, cols = match[1], int(match[2]), int(match[3])
            values = [next(lines).split() for _ in range(rows)]
            orders[-1][name] = np.array(values, np.float64).reshape(rows, cols)
    return orders


def number_matrix(rows: int, cols: int, seed: int) -> np.ndarray:
    """What lora.c's new_matrix makes, in float64: its numbers are exact in either."""
    return ((np.arange(rows * cols) * 37 + seed * 11) % 101 / 64 - 0.78125).reshape(rows, cols)


def gamma(terms: int) -> float:
    return terms * EPS / (1 - terms * EPS)


def expected(m: int, k: int, n: int, r: int):
    """Each matrix in float64, and how far the kernel may be off: the bound of minilora.h, by element."""
    shapes = ((m, k), (k, n), (1, n), (k, r), (r, n), (m, n))
    x, w, bias, a, b, grad = (number_matrix(*shape, seed) for seed, shape in enumerate(shapes, 1))

    def values(x, w, bias, a, b, grad):
        hidden, grad_h = x @ a, 2 * grad @ b.T
        return {
            "y": x @ w + bias + 2 * hidden @ b,
            "grad_x": grad @ w.T + grad_h @ a.T,
            "grad_a": x.T @ grad_h,
            "grad_b": 2 * hidden.T @ grad,
        }

    sizes = values(*(np.abs(array) for array in (x, w, bias, a, b, grad)))
    # The terms of the outer sum, and those of the inner one whose rounded result it takes; printed with 9 digits.
    terms = {"y": k + r + k, "grad_x": n + r + n, "grad_a": m + n, "grad_b": m + k}
    return values(x, w, bias, a, b, grad), {name: gamma(terms[name] + 8) * size for name, size in sizes.items()}


def assert_right(program: Path, *sizes: int) -> None:
    orders = printed(program, *sizes)
    assert len(orders) == 2
    values, allowed = expected(*(sizes or (2, 4, 3, 1)))
    for matrices in orders:
        assert matrices.keys() == values.keys()
        for name, got in matrices.items():
            assert got.shape == values[name].shape
            assert np.all(np.abs(got - values[name]) <= allowed[name]), name


SIZES = [(), (1, 1, 1, 1), (33, 50, 70, 8), (150, 401, 207, 17), (3, 5, 4, 0), (0, 4, 3, 1)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("program", ["lora", "lora_native"])
def test_a_c_program_computes_the_layer_and_its_gradients(built, program, sizes):
    assert_right(built / program, *sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_the_program_is_clean_under_the_sanitizers(sanitized, sizes):
    assert_right(sanitized / "lora", *sizes)


def test_posix_threads_in_place_of_openmp_give_the_same(posix_threads):
    assert_right(posix_threads / "lora", 150, 401, 207, 17)


def test_the_program_refuses_what_are_no_sizes(built):
    for arguments in (["1"], ["1", "2", "3", "-4"]):
        done = subprocess.run([str(built / "lora"), *arguments], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2
        assert done.stderr.startswith("lora")


def test_a_library_alone_needs_neither_dispatch_nor_python(built):
    done = subprocess.run(["nm", str(built / "libminilora_native.a")], capture_output=True, text=True, timeout=20)
    undefined = set(re.findall(r" U (\w+)$", done.stdout, re.M)) - set(re.findall(r" [TtRr] (\w+)$", done.stdout, re.M))
    assert {"minilora_lora_forward_f32", "minilora_lora_backward_f32"} <= set(
        re.findall(r" T (\w+)$", done.stdout, re.M)
    )
    assert not [name for name in undefined if re.match(r"_?Py|minilora|malloc|calloc|free$|printf|exit", name)]


def test_a_cpp_program_can_use_the_library(built, tmp_path):
    compiler = shutil.which("c++")
    assert compiler, "a C++ compiler named c++ is needed; install g++"
    (tmp_path / "main.cpp").write_text(
        """
#include "minilora.h"
#include <cstdio>
#include <vector>
int main() {
    std::vector<float> x{1, 2}, w{1, 0, 2, 0, 1, 1}, a{1, 3}, b{1, 0, -1}, y(3), hidden(1);
    std::vector<unsigned char> workspace(minilora_lora_workspace_f32(1, 3, 2, 1, 1));
    minilora_lora_forward_f32(y.data(), hidden.data(), x.data(), w.data(), a.data(), b.data(), nullptr,
                              workspace.data(), 1, 3, 2, 1, 2.0f, MINILORA_W_KN, MINILORA_F32, 1);
    std::printf("%g %g %g", y[0], y[1], y[2]);
}
"""
    )
    flags = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fopenmp", f"-I{ml.get_include()}"]
    command = [compiler, *flags, "main.cpp", str(built / "libminilora.a"), "-lm", "-o", "main"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, timeout=20)
    assert done.stdout == "15 2 -10"  # the example of docs/conventions.md


def test_the_makefile_finds_the_sources_by_the_package_and_says_so_where_it_cannot(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CSRC")}
    environment["PYTHONPATH"] = str(Path(ml.__file__).parents[1])
    command = ["make", "--dry-run", "-C", str(EXAMPLE), f"BUILD={tmp_path}"]
    done = subprocess.run(
        [*command, f"PYTHON={sys.executable}"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert f"-c {ml.get_include()}/lora.c -o {tmp_path}/lora_baseline.o" in done.stdout
    done = subprocess.run([*command, "PYTHON=false"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "false cannot import minilora: name an interpreter that can, PYTHON=..., or the sources" in done.stderr
