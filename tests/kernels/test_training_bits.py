"""A training run has one outcome, to the bit: whatever the number of threads, whatever memory held before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernels.dirty_memory import dirty_memory
from models.tiny import tiny_config, tiny_weights, write_folder

import minilora

pytestmark = pytest.mark.native

PROGRAM = Path(__file__).with_name("train_and_hash.py")
# Sums and outputs longer than every block of csrc/internal.h (BLOCK_K = 320, BLOCK_N = 576), none a multiple of a tile.
WIDE = {
    "hidden_size": 522, "intermediate_size": 1101, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 174,
    "vocab_size": 603,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny_config(**WIDE)
    # Of a size that keeps what flows through the layers near one.
    weights = {path: w if w.ndim == 1 else w / 8 for path, w in tiny_weights(config).items()}
    return write_folder(tmp_path_factory.mktemp("wide"), config, weights)


def train(folder, memory, threads):
    """What a process of its own prints: the hash of the adapter, its threads, the first and the last loss."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINILORA_")}
    root = str(Path(minilora.__file__).parents[1])
    # One thread of BLAS: what NumPy computes is not what is tested.
    environment |= {"PYTHONPATH": root, "MINILORA_THREADS": threads, "MINILORA_BACKEND": "native"}
    environment["OMP_WAIT_POLICY"] = "passive"  # three threads may have to share two processors
    environment |= {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "MKL", "OMP")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), memory],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def right(folder):
    return train(folder, "clean", "1")


def test_the_run_learns(right):
    _, _, first, last = right
    assert float(last) < 0.7 * float(first)


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_twenty_steps_give_the_same_weights_with_any_threads_in_memory_full_of_nan(folder, right, threads):
    digest, used, *losses = train(folder, "dirty", threads)
    assert digest == right[0]
    assert losses == right[2:]
    assert used in (threads, "1")  # without OpenMP it is one


def test_dirty_memory_is_what_the_kernels_get_and_no_longer_than_asked():
    from minilora.kernels import native

    workspace, numpy = native._workspace, native.np
    with dirty_memory() as counts:
        assert (native._workspace(8) == 255).all()
        assert np.isnan(native.np.empty((2, 3), dtype=np.float32)).all()
        assert native.np.float32 is np.float32
    assert counts["workspaces"] == 1
    assert counts["arrays"] >= 1
    assert (native._workspace, native.np) == (workspace, numpy)
