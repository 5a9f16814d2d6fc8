"""Products of one matrix with another, against the multiply-adds that this machine does at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sides import Bench, Row, verify

ROWS = 1024
SHAPES = {
    "1024 × 1024 × 1024": (1024, 1024),
    "1024 × 576 × 576 (q, o)": (576, 576),
    "1024 × 576 × 192 (k, v)": (576, 192),
    "1024 × 576 × 1536 (gate, up)": (576, 1536),
    "1024 × 1536 × 576 (down)": (1536, 576),
    "1024 × 576 × 49152 (head)": (576, 49152),
}


def operands(k: int, n: int) -> Any:
    """x (M, K), and W (K, N) stored as files store it, (N, K)."""
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.standard_normal((ROWS, k), dtype=np.float32), rng.standard_normal((n, k), dtype=np.float32).T


def ours(k: int, n: int) -> dict[str, Callable[[], Any]]:
    import minilora as ml

    x, w = operands(k, n)
    frozen = ml.FrozenWeight(w)
    return {"product": lambda: ml.ops.linear(x, frozen), "some": lambda: ml.ops.linear(x, frozen)[::97, ::97].tolist()}


def by_numpy(k: int, n: int) -> dict[str, Callable[[], Any]]:
    x, w = operands(k, n)
    return {"product": lambda: x @ w, "some": lambda: (x @ w)[::97, ::97].tolist()}


def rows(bench: Bench) -> Iterator[Row]:
    mine = bench.enter("minilora", "rooflines")
    numpy = bench.enter("NumPy", "rooflines", OPENBLAS_NUM_THREADS=str(bench.threads))
    for shape, (k, n) in SHAPES.items():
        mine.make("ours", k=k, n=n)
        numpy.make("by_numpy", k=k, n=n)
        verify(shape, {one.name: one.side.call("some") for one in (mine, numpy)}, 1e-5)
        result = bench.turns([mine, numpy], "product", rounds=5, seconds=0.1)
        peak, work = bench.roofline.peak_flops(), 2 * ROWS * k * n
        rates = sorted(work / time / peak for time in result.times["minilora"])
        reached = work / result.seconds("minilora")
        yield Row(
            f"sgemm {shape}",
            ours=f"{reached / 1e9:.0f} GFLOP/s",
            theirs=f"NumPy {work / result.seconds('NumPy') / 1e9:.0f} GFLOP/s; peak {peak / 1e9:.0f}",
            figure=reached / peak,
            spread=(rates[0], rates[-1]),
            goal=0.85,
            unit="%",
        )
