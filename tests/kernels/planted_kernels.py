"""The catalogue of planted faults in csrc/: ways in which a kernel can be wrong, each a small change of one file.

A fault is data. A change that no input can tell from the original is none: a limit between two paths that are both
right, a panel's padding, which is multiplied but never stored.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"


@dataclass(frozen=True)
class Fault:
    """A wrong change of one file in csrc/, and the C test that must notice it."""

    name: str
    file: str
    old: str  # is in the file exactly once
    new: str
    test: str = "test_lora"  # a program of csrc/tests
    variant: str = "plain"  # of csrc/tests/Makefile: sanitize sees every step too far, threads every race


RACE, STRAY = {"variant": "threads"}, {"variant": "sanitize"}

GEMM = [
    Fault("the last term of a sum is left out", "gemm.c", "k < depth; k++) {", "k < depth - 1; k++) {"),
    Fault(
        "the last columns are stored one short", "gemm.c",
        "memcpy(c + i * c_stride, full + i * TILE_COLS, (size_t)cols",
        "memcpy(c + i * c_stride, full + i * TILE_COLS, (size_t)(cols - 1)",
    ),
    Fault(
        "the last columns are stored as a whole tile", "gemm.c",
        "memcpy(c + i * c_stride, full + i * TILE_COLS, (size_t)cols",
        "memcpy(c + i * c_stride, full + i * TILE_COLS, (size_t)TILE_COLS",
    ),
    Fault(
        "the last columns start from the row above", "gemm.c",
        "start + i * start_stride, (size_t)cols", "start + (i > 0 ? i - 1 : 0) * start_stride, (size_t)cols",
    ),
    Fault(
        "the last columns are taken for a whole tile", "gemm.c",
        "where.j1 - (where.j1 - where.j0) % TILE_COLS", "where.j1",
    ),
    Fault("a tile lacks its last row", "gemm.c", "copy_tile(tile_a, p, i, rows,", "copy_tile(tile_a, p, i, rows - 1,"),
    Fault(
        "a tile is copied for the first rows alone", "gemm.c",
        "copy_tile(tile_a, p, i, rows, k0, k1);", "if (i == where.i0) copy_tile(tile_a, p, i, rows, k0, k1);",
    ),
    Fault("the second segment's tile is one term off", "gemm.c", "tile_a + (middle - first)", "tile_a + (k1 - k0) - 1"),
    Fault("the second segment has the first one's scale", "gemm.c", "p->second.scale);", "p->first.scale);"),
    Fault("a rank of 1 is taken for none", "gemm.c", "if (k1 > p->first.k)", "if (k1 > p->first.k + 1)"),
    Fault("scale is left out", "gemm.c", "scale * line_of(a, i + row)", "line_of(a, i + row)"),
    Fault("scale is left out of a transposed side", "gemm.c", "scale * line_of(a, k)", "line_of(a, k)"),
    Fault("a transposed side is read from its first row", "gemm.c", "line_of(a, k)[i + row]", "line_of(a, k)[row]"),
    Fault(
        "every column has the bias of the first", "gemm.c",
        "p->bias ? p->bias + j : zeros", "p->bias ? p->bias : zeros",
    ),
    Fault("the bias has a row for each row", "gemm.c", "go_on ? p->n : 0", "go_on || p->bias ? p->n : 0", **STRAY),
    Fault("a later block forgets the ones before", "gemm.c", "p->accumulate || k > 0", "p->accumulate"),
    Fault("accumulate is ignored", "gemm.c", "p->accumulate || k > 0", "k > 0"),
    Fault("accumulate is ignored with few rows", "gemm.c", "0, p->accumulate, scratch)", "0, 0, scratch)"),
    Fault(
        "a middle block is missed", "gemm.c",
        "block(p, where, k, end, 0,", "if (!k || end == depth) block(p, where, k, end, 0,",
    ),
    Fault(
        "each block lacks its last term", "gemm.c",
        "block(p, where, k, end, 0,", "block(p, where, k, end - (end > k), 0,",
    ),
    Fault("nothing is stored where there is no term", "gemm.c", "while (k < depth || !go_on)", "while (k < depth)"),
    Fault("a side in place is read from its start", "gemm.c", "k0 < p->first.k ? k0 :", "k0 < p->first.k ? 0 :"),
    Fault("the segments in place are swapped", "gemm.c", "? &p->first : &p->second", "? &p->second : &p->first"),
    Fault(
        "a block in place reaches over both segments", "gemm.c",
        "p->first.k ? p->first.k : depth", "p->first.k ? depth : depth",
    ),
    Fault(
        "a panel is packed from the first column", "gemm.c",
        "p, k0, k1, direct ? whole : where.j0,", "p, k0, k1, where.j0,",
    ),
    Fault("the later slices of a wide side are left out", "gemm.c", "s < slices; s++", "s < smaller(slices, 1); s++"),
    Fault(
        "a slice is wider than its panels' scratch", "gemm.c",
        "(direct ? DIRECT_N : BLOCK_N)", "(direct ? DIRECT_N : 2 * BLOCK_N)", **STRAY,
    ),
    Fault(
        "the low rank is left out of few rows' dot products", "gemm.c",
        "direct_product(p, where, p->first.k, 1,", "direct_product(p, where, p->first.k + p->second.k, 1,",
    ),
]  # fmt: skip

SHARES = [
    Fault(
        "two threads compute the same rows", "gemm.c",
        "smaller((row_part + 1) * row_units / row_parts * height,",
        "smaller(((row_part + 1) * row_units / row_parts + 1) * height,", **RACE,
    ),
    Fault(
        "two threads compute the same columns", "gemm.c",
        "smaller((col_part + 1) * col_units / col_parts * TILE_COLS,",
        "smaller(((col_part + 1) * col_units / col_parts + 1) * TILE_COLS,", **RACE,
    ),
    Fault(
        "some rows belong to no thread", "gemm.c",
        "smaller((row_part + 1) * row_units / row_parts * height,",
        "smaller((row_part + 1) * (row_units / row_parts) * height,",
    ),
    Fault(
        "some columns belong to no thread", "gemm.c",
        "smaller(col_part * col_units / col_parts * TILE_COLS,",
        "smaller((col_part * col_units / col_parts + (col_part > 0)) * TILE_COLS,",
    ),
    Fault(
        "the blocks of a sum depend on the number of threads", "gemm.c",
        "ceil_div(first, BLOCK_K))", "ceil_div(first, where.i1 - where.i0 < p->m ? BLOCK_K / 2 : BLOCK_K))",
    ),
]  # fmt: skip

PACK = [
    Fault("the last rows are not transposed", "pack.c", "i < whole_rows ? whole_cols : 0", "whole_cols"),
    Fault(
        "the last columns are not transposed", "pack.c",
        "i < whole_rows ? whole_cols : 0", "i < whole_rows ? cols : 0",
    ),
    Fault("a step lacks its last columns", "pack.c", "smaller(start + STEP,", "smaller(start + STEP - 4,"),
    Fault("two columns are swapped in transposing", "pack.c", "(dst + 2 * dst_stride) = ", "(dst + 1 * dst_stride) = "),
    Fault("a panel lacks its last column", "pack.c", "(size_t)(j1 - j0) * sizeof", "(size_t)(j1 - j0 - 1) * sizeof"),
    Fault(
        "a transposed panel lacks its last column", "pack.c",
        "b.stride, cols, k1 - k0)", "b.stride, cols - 1, k1 - k0)",
    ),
    Fault("a panel holds the first terms again", "pack.c", "line_of(b, j) + k0", "line_of(b, j)"),
    Fault("the second segment's panel covers the first's", "pack.c", "panels + (middle - first) * TILE_COLS", "panels"),
    Fault("the second segment starts again in each block", "pack.c", "k0 + middle - first - p->first.k,", "0 * k0,"),
]  # fmt: skip

DOT = [
    Fault("the terms beyond whole vectors are left out", "dot.c", "k = whole; k < depth;", "k = whole; k < whole;"),
    Fault("the last whole vector is left out", "dot.c", "k < whole; k +=", "k < whole - LANES; k +="),
    Fault("half of the partial sums is left out", "dot.c", "half > 0;", "half > 1;"),
    Fault(
        "the bias is left out", "dot.c",
        "c[i * c_stride + j] = bias ? bias[j] + total", "c[i * c_stride + j] = bias ? total",
    ),
    Fault("every last column has the bias of the first", "dot.c", "bias ? bias + j : NULL", "bias"),
    Fault(
        "the last rows are left out", "dot.c",
        "i < smaller(i0 + rows_inside, where.i1);", "i + DOT_ROWS <= where.i1;",
    ),
    Fault(
        "each thread reads the first thread's columns", "dot.c",
        "lines = line_of(b, j)", "lines = line_of(b, j - where.j0)",
    ),
]  # fmt: skip

STORED = [
    Fault("a block that is cut is taken from its start", "decode.c", "whole + skipped", "whole"),
    Fault("a part of a block is decoded over its end", "decode.c", "taken == BLOCK ? out : whole", "out", **STRAY),
    Fault(
        "a line of bf16 is read from its start", "decode.c",
        "element(line, k, storage)", "element(line, k - first, storage)",
    ),
    Fault("half precision is read as bf16", "decode.c", "if (storage == MINILORA_F16)", "if (storage == MINILORA_F32)"),
    Fault(
        "Q4_0 is decoded as Q4_1", "decode.c",
        "decode(out, in, first, count, MINILORA_Q4_0)", "decode(out, in, first, count, MINILORA_Q4_1)",
    ),
    Fault("a line has the length of another storage", "decode.c", "2 * elements;", "4 * elements;"),
    Fault("decoded lines are packed with the first one's terms", "pack.c", "b, j + i + line, k0,", "b, j + i, k0,"),
    Fault(
        "a decoded line starts at the first column", "pack.c",
        "minilora_decode(decoded, b, k, j0,", "minilora_decode(decoded, b, k, 0,",
    ),
    Fault("decoded lines lie on each other", "dot.c", "scratch + line * first->k, b,", "scratch, b,"),
    Fault("a line is decoded from the first column", "dot.c", "k + line, where.j0, cols)", "k + line, 0, cols)"),
    Fault(
        "the last lines are left out", "dot.c",
        "k < first->k; k += LINES_AT_ONCE", "k + 3 < first->k; k += LINES_AT_ONCE",
    ),
    Fault(
        "the second row is the first again", "dot.c",
        "i < rows; i++) {\n            float sum = c[", "i < 1; i++) {\n            float sum = c[",
    ),
    Fault("decoding in registers skips the last block", "dot.c", "k + BLOCK <= depth", "k + BLOCK < depth"),
]  # fmt: skip

LORA = [
    Fault(
        "nobody waits for hidden", "lora.c",
        "compute_share(&all->down, part, parts, scratch);\n        minilora_meet(parts);",
        "compute_share(&all->down, part, parts, scratch);", **RACE,
    ),
    Fault(
        "nobody waits for grad_h", "lora.c",
        "compute_share(&all->up, part, parts, scratch);\n        minilora_meet(parts);",
        "compute_share(&all->up, part, parts, scratch);", **RACE,
    ),
    Fault(
        "all threads have one scratch", "lora.c",
        "const forward_job *const all = job;\n    float *const scratch = all->scratch + part * whole_lines(SCRATCH);",
        "const forward_job *const all = job;\n    float *const scratch = all->scratch;", **RACE,
    ),
    Fault(
        "the workspace has the scratch of one thread", "lora.c",
        "+ threads * whole", "+ 0 * threads + whole", **STRAY,
    ),
    Fault("grad_h and the turned grad_A are one buffer", "lora.c", ".grad_h = start + 2 *", ".grad_h = start +"),
    Fault("grad_x reads A^T before it is written", "lora.c", "    if (grad_x)\n", "    if (grad_x && grad_a)\n"),
    Fault("grad_A starts from what is in the workspace", "lora.c", "if (turned->accumulate)", "if (turned->c == NULL)"),
    Fault("a thread's grad_A lands in another's place", "lora.c", "grad_a + share.j0 * r", "grad_a + share.i0 * r"),
    Fault("grad_x has scale twice", "lora.c", "turned_a, k, 0, 0}, r, scale}", "turned_a, k, 0, 0}, r, scale * scale}"),
    Fault("grad_A lacks scale", "lora.c", "{x, k, 0, 0}, m, scale}", "{x, k, 0, 0}, m, 1.0f}"),
    Fault("grad_B is of the unscaled product", "lora.c", "{grad, n, 0, 0}, m, scale}", "{grad, n, 0, 0}, m, 1.0f}"),
    Fault(
        "the layouts of W are swapped in backward", "lora.c",
        "w_layout != MINILORA_W_NK", "w_layout == MINILORA_W_NK",
    ),
    Fault(
        "grad_B is formed only with grad_A", "lora.c",
        "if (low_rank && all->grad_b.c)", "if (low_rank && all->grad_a)", **STRAY,
    ),
]  # fmt: skip

TEAM = [
    Fault("every thread does the first part", "team.c", "omp_get_thread_num(),", "0,", test="test_team"),
    Fault("nobody waits", "team.c", "#pragma omp barrier\n", "", test="test_team"),
    Fault(
        "work too small to share is shared", "team.c",
        " && cost >= MINILORA_SERIAL_WORK", " && cost < 1e30", test="test_team",
    ),
    Fault(
        "nobody waits for POSIX threads", "team.c",
        "while (meeting == mine->meetings)", "while (0)", test="test_team", **RACE,
    ),
    Fault(
        "a POSIX thread outlives its job", "team.c",
        "int part = 1; part < all.parts", "int part = 2; part < all.parts", test="test_team", **RACE,
    ),
    Fault(
        "parts are uneven", "internal.h",
        "smaller(items % parts, part)", "(part == parts ? items % parts : 0)", test="test_team",
    ),
]  # fmt: skip

FAULTS = [*GEMM, *SHARES, *PACK, *DOT, *STORED, *LORA, *TEAM]


def plant(source: str, fault: Fault) -> str:
    """Return the text of ``fault.file`` with the fault in it; fail where it has no such place, or several."""
    found = source.count(fault.old)
    assert found == 1, (
        f"csrc/{fault.file} has {found} places for the fault {fault.name!r}, expected one with\n  {fault.old}\n"
        "  the source has changed: change the fault's old and new text with it"
    )
    return source.replace(fault.old, fault.new)


def _make(csrc: Path, *targets: str) -> None:
    """Build programs of the C tests in csrc/, for the one instruction set that every machine has."""
    # A make that runs the tests must not hand its own flags down.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    settings = ("BUILD=build", "MINILORA_ISAS=baseline", "OPTIMIZE=-O1 -Wno-unused")
    done = subprocess.run(
        ["make", "-C", str(csrc / "tests"), *settings, *targets],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"the C tests do not compile:\n{done.stderr}"


def program(csrc: Path, test: str, variant: str) -> Path:
    """Return where the Makefile puts a test program."""
    return csrc / "tests" / "build" / variant / test


def build_all(folder: Path) -> Path:
    """Copy csrc/ into ``folder``, build there all that the catalogue needs, and return the copy."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc)
    _make(csrc, "-j2", *sorted({f"build/{fault.variant}/{fault.test}" for fault in FAULTS}))
    return csrc


def build_with(fault: Fault, built: Path, folder: Path) -> Path:
    """Copy what build_all built into ``folder``, with the fault: only the changed file is compiled again."""
    csrc = folder / "csrc"
    shutil.copytree(built, csrc)
    path = csrc / fault.file
    path.write_text(plant(path.read_text(encoding="utf-8"), fault), encoding="utf-8")
    _make(csrc, f"build/{fault.variant}/{fault.test}")
    return csrc


def run(csrc: Path, test: str, variant: str) -> subprocess.CompletedProcess[str]:
    """Run the fewer cases of a test program."""
    command = [str(program(csrc, test, variant)), "few"]
    if variant == "threads" and subprocess.run(["setarch", "-R", "true"], capture_output=True).returncode == 0:
        command = ["setarch", "-R", *command]  # as in csrc/tests/Makefile
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
