"""LoRA from scratch: the textbook example, what is wrong with it, and the right form.

    python examples/01_lora_from_scratch.py [--seed 0]

A much copied example adapts a layer of 1000 x 1000 weights so: it draws W, A (1000 x 10) and B (10 x 1000) at random,
adds W_lora = W + A @ B, wraps the sum in a new parameter and computes x @ weight. The first part shows by numbers what
that does; the second does it right. Every figure is computed here; the script fails if a conclusion does not hold.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

# One thread for NumPy, and in main() for the kernel: more are faster only where they have the machine to themselves.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import minilora as ml
from minilora.testing import gradcheck

IN, OUT, RANK = 1000, 1000, 10
STEPS, ROWS = 150, 128  # of training, and the inputs of each step
RATE = 0.02  # falls to 0 along a straight line
PAIRS = 15  # of timings


def conclude(claim: str, holds: bool) -> None:
    """Print what was found; stop where it is not so."""
    print(f"    {'=>' if holds else 'NOT SO:'} {claim}")
    if not holds:
        sys.exit(1)


def random_layer(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (1000, 1000), A (1000, 10) and B (10, 1000), all random, as in the textbook."""
    W = rng.standard_normal((IN, OUT), np.float32) / np.float32(np.sqrt(IN))
    A = rng.standard_normal((IN, RANK), np.float32) / np.float32(np.sqrt(IN))
    B = rng.standard_normal((RANK, OUT), np.float32) / np.float32(np.sqrt(RANK))
    return W, A, B


def trained(*arrays: np.ndarray) -> list[ml.Tensor]:
    return [ml.tensor(array, requires_grad=True) for array in arrays]


# --- The faulty form ---


def the_faulty_form(rng: np.random.Generator) -> None:
    print("The faulty form: W_lora = W + A @ B, wrapped in a new parameter, all three random\n")
    w, a, b = random_layer(rng)
    x = rng.standard_normal((1, IN), np.float32)
    the_graph_is_cut(x, *trained(w, a, b))
    W_is_not_frozen(x, *trained(w, a, b))
    the_layer_has_changed(x, w, a, b)


def the_graph_is_cut(x: np.ndarray, W: ml.Tensor, A: ml.Tensor, B: ml.Tensor) -> None:
    print("  Fault 1: the new parameter cuts the graph")
    weight = ml.tensor((W + A @ B).data, requires_grad=True)  # an array of its own, which forgets how it came about
    (x @ weight).sum().backward()
    print(f"    gradient of A: {A.grad}, of B: {B.grad}; of the wrapped sum: {weight.grad.size:,} numbers")

    before = A.data.copy(), B.data.copy()
    ml.optim.AdamW([A, B], lr=0.1).step()
    moved = max(np.abs(now.data - old).max() for now, old in zip((A, B), before, strict=True))
    print(f"    a step of AdamW moves A and B by {moved}")
    conclude("A and B are never trained", A.grad is None and B.grad is None and moved == 0)


def W_is_not_frozen(x: np.ndarray, W: ml.Tensor, A: ml.Tensor, B: ml.Tensor) -> None:
    print("  Fault 2: W requires a gradient")
    (x @ (W + A @ B)).sum().backward()  # without the wrapping: now A and B are reached, and so is W
    full, low_rank = W.grad.size, A.grad.size + B.grad.size
    print(f"    numbers with a gradient: W {full:,}, A and B together {low_rank:,}")
    held = [3 * 4 * count / 1e6 for count in (full, low_rank)]  # float32: the gradient, and AdamW's two means
    print(f"    gradients and AdamW's state: W {held[0]:.2f} MB, A and B together {held[1]:.2f} MB")
    conclude(f"{full // low_rank} times as much as LoRA has to train", full >= 50 * low_rank)


def the_layer_has_changed(x: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    print("  Fault 3: A and B are both random")
    before, after = ml.ops.linear(x, w), ml.ops.linear(x, w + ml.ops.linear(a, b))
    change = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    print(f"    |x (W + A B) - x W| / |x W| = {change:.2f} before the first step of training")
    conclude("the layer is not the one that was to be adapted", change > 0.1)


# --- The right form ---


def the_right_form(rng: np.random.Generator) -> None:
    print("\nThe right form: W frozen, B = 0, the low-rank part beside it\n")
    w, a, _ = random_layer(rng)
    W = ml.FrozenWeight(w)
    A, B = trained(a, np.zeros((RANK, OUT), np.float32))

    nothing_has_changed_yet(rng, W, A, B)
    the_gradients_are_right(rng)
    sha = W.sha256()
    a_planted_change_is_recovered(rng, W, A, B)
    conclude("W is what it was, by its SHA-256", W.sha256() == sha)
    count = A.grad.size + B.grad.size
    print(f"  Trained numbers: {count:,} of {w.size:,} ({count / w.size:.0%})")
    conclude("20,000 instead of 1,000,000", (count, w.size) == (20_000, 1_000_000))


def nothing_has_changed_yet(rng: np.random.Generator, W: ml.FrozenWeight, A: ml.Tensor, B: ml.Tensor) -> None:
    differences = []
    for rows in (1, ROWS):
        x = rng.standard_normal((rows, IN), np.float32)
        differences.append(np.abs(ml.lora_matmul(x, W, A, B).data - ml.ops.linear(x, W)).max())
    print(f"  Before training: largest difference from x W is {max(differences)}")
    conclude("with B = 0 the layer is the old one, to the last bit", max(differences) == 0)


def the_gradients_are_right(rng: np.random.Generator) -> None:
    """Every element against finite differences, on a smaller layer in float64."""
    x, W = rng.standard_normal((3, 12)), rng.standard_normal((12, 9))
    A, B = rng.standard_normal((12, 4)), rng.standard_normal((4, 9))
    for b in (B, np.zeros_like(B)):  # somewhere, and where training starts
        gradcheck(lambda x, A, B: ml.lora_matmul(x, ml.FrozenWeight(W), A, B, scale=0.5), x, A, b)
    print(f"  Gradients of x, A, B: all {x.size + A.size + B.size} elements agree with finite differences")


def a_planted_change_is_recovered(rng: np.random.Generator, W: ml.FrozenWeight, A: ml.Tensor, B: ml.Tensor) -> None:
    """Train A and B towards W + D, where D has rank 10 and is not known to them, only x (W + D) for random x."""
    _, down, up = random_layer(rng)
    wanted = ml.FrozenWeight(W.dequantize() + ml.ops.linear(down, up))

    def loss(x: np.ndarray) -> ml.Tensor:
        return ((ml.lora_matmul(x, W, A, B) - ml.ops.linear(x, wanted)) ** 2).mean()

    unseen = rng.standard_normal((256, IN), np.float32)
    first = loss(unseen).item()
    optimizer = ml.optim.AdamW([A, B], lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.lr = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        loss(rng.standard_normal((ROWS, IN), np.float32)).backward()
        optimizer.step()
    last = loss(unseen).item()
    print(f"  A planted change of rank {RANK}: loss on unseen inputs {first:.4f} -> {last:.6f} in {STEPS} steps")
    conclude(f"{1 - last / first:.3%} of the loss is gone", last <= 0.001 * first)


# --- The price ---


def the_price(rng: np.random.Generator) -> None:
    print("\nThe price of one forward pass, x (1, 1000)\n")
    w, a, b = random_layer(rng)
    x = rng.standard_normal((1, IN), np.float32)
    forms: dict[str, Callable[[], np.ndarray]] = {
        "x (W + A B)": lambda: ml.ops.linear(x, w + ml.ops.linear(a, b)),
        "x W + (x A) B": lambda: ml.lora_matmul(x, w, a, b),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(PAIRS):  # in turn, so that a busy machine is fair to both
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - start)
    memory = {name: peak_bytes(form) for name, form in forms.items()}
    for name in forms:
        print(f"    {name:14} {statistics.median(seconds[name]) * 1e3:8.3f} ms {memory[name]:12,} bytes at most")
    inside, beside = forms
    ratio = statistics.median(s / t for s, t in zip(seconds[inside], seconds[beside], strict=True))
    print(f"    beside W it takes 1/{ratio:.0f} of the time (median of {PAIRS} pairs)")
    conclude("both give the same", bool(np.allclose(forms[inside](), forms[beside](), atol=1e-4)))
    conclude("beside W the low-rank product needs less than 1 % of the memory", memory[beside] < 0.01 * memory[inside])


def peak_bytes(form: Callable[[], np.ndarray]) -> int:
    """How much memory a form takes for what it computes on the way and at the end."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        form()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="LoRA from scratch, wrong and right")
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args(argv).seed)
    ml.set_num_threads(1)
    the_faulty_form(rng)
    the_right_form(rng)
    the_price(rng)


if __name__ == "__main__":
    main()
