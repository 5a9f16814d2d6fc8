"""LoRA from scratch: the textbook example, what is wrong with it, and the right form.

    python examples/01_lora_from_scratch.py [--seed 0]

A much copied example adapts a layer of 1000 x 1000 weights so: it draws W, A (1000 x 10) and B (10 x 1000) at random,
adds W_lora = W + A @ B, wraps the sum in a new parameter and computes x @ weight. The first part shows by numbers what
that does; the second does it right. Every figure is computed here; the script fails if a conclusion does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

import minilora as ml
from minilora.testing import gradcheck

IN, OUT, RANK = 1000, 1000, 10
STEPS = 60  # of training
RATE = 0.03  # falls to 0 along a straight line


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


def the_faulty_form(rng: np.random.Generator) -> None:
    print("The faulty form: W_lora = W + A @ B, wrapped in a new parameter, all three random\n")
    w, a, b = random_layer(rng)
    W, A, B = (ml.tensor(array, requires_grad=True) for array in (w, a, b))
    x = rng.standard_normal((1, IN), np.float32)

    W_lora = W + A @ B
    weight = ml.tensor(W_lora.data, requires_grad=True)  # the new parameter: a leaf, whose past is forgotten
    (x @ weight).sum().backward()

    print("  Fault 1: the new parameter cuts the graph")
    print(f"    gradient of A: {A.grad}, of B: {B.grad}; of the wrapped sum: {weight.grad.size:,} numbers")
    conclude("A and B would never be trained", A.grad is None and B.grad is None)

    W_lora = W + A @ B  # the same without the wrapping: now A and B are reached, and so is W
    (x @ W_lora).sum().backward()
    low_rank = A.grad.size + B.grad.size
    print("  Fault 2: W requires a gradient")
    print(f"    numbers with a gradient: W {W.grad.size:,}, A and B together {low_rank:,}")
    conclude(f"{W.grad.size // low_rank} times as much as LoRA has to train", W.grad.size >= 50 * low_rank)

    before, after = x @ w, x @ W_lora.data
    change = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    print("  Fault 3: A and B are both random")
    print(f"    |x (W + A B) - x W| / |x W| = {change:.2f} before the first step of training")
    conclude("the layer is not the one that was to be adapted", change > 0.1)


def the_right_form(rng: np.random.Generator) -> None:
    print("\nThe right form: W frozen, B = 0, the low-rank part beside it\n")
    w, a, _ = random_layer(rng)
    W = ml.FrozenWeight(w)
    A = ml.tensor(a, requires_grad=True)
    B = ml.tensor(np.zeros((RANK, OUT), np.float32), requires_grad=True)
    x = rng.standard_normal((64, IN), np.float32)

    y = ml.lora_matmul(x, W, A, B)
    print(f"  Before training: largest difference from x W is {np.abs(y.data - ml.ops.linear(x, W)).max()}")
    conclude("with B = 0 the layer is the old one, to the last bit", np.array_equal(y.data, ml.ops.linear(x, W)))

    check_gradients(rng)
    sha = W.sha256()
    recover_a_planted_change(rng, W, A, B)
    conclude("W is what it was, by its SHA-256", W.sha256() == sha)
    trained = A.data.size + B.data.size
    print(f"  Trained numbers: {trained:,} of {w.size:,} ({trained / w.size:.0%})")
    conclude("20,000 instead of 1,000,000", (trained, w.size) == (20_000, 1_000_000))


def check_gradients(rng: np.random.Generator) -> None:
    """The gradients of x, A and B against finite differences, element by element, on a small layer in float64."""
    x, W = rng.standard_normal((3, 12)), rng.standard_normal((12, 9))
    A, B = rng.standard_normal((12, 4)), rng.standard_normal((4, 9))
    gradcheck(lambda x, A, B: ml.lora_matmul(x, ml.FrozenWeight(W), A, B, scale=0.5), x, A, B)
    print(f"  Gradients of x, A, B: all {x.size + A.size + B.size} elements agree with finite differences")


def recover_a_planted_change(rng: np.random.Generator, W: ml.FrozenWeight, A: ml.Tensor, B: ml.Tensor) -> None:
    """Train A and B towards W + D, where D has rank 3, and measure on inputs that were not trained on."""
    down = rng.standard_normal((IN, 3), np.float32) / np.float32(np.sqrt(IN))
    up = rng.standard_normal((3, OUT), np.float32)

    def wanted(x: np.ndarray) -> np.ndarray:
        return ml.ops.linear(x, W) + (x @ down) @ up

    def error(x: np.ndarray, target: np.ndarray) -> ml.Tensor:
        miss = ml.lora_matmul(x, W, A, B) - target
        return (miss * miss).mean()

    each_input_once = np.float32(np.sqrt(IN)) * np.eye(IN, dtype=np.float32)
    target = wanted(each_input_once)
    unseen = rng.standard_normal((256, IN), np.float32)
    first = error(unseen, wanted(unseen)).item()
    optimizer = ml.optim.AdamW([A, B], lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.lr = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        error(each_input_once, target).backward()
        optimizer.step()
    last = error(unseen, wanted(unseen)).item()
    print(f"  A planted change of rank 3: loss on unseen inputs {first:.3f} -> {last:.6f} in {STEPS} steps")
    conclude(f"{1 - last / first:.3%} of the loss is gone", last <= 0.001 * first)


def the_price(rng: np.random.Generator) -> None:
    print("\nThe price of one forward pass, x (1, 1000), in plain NumPy\n")
    w, a, b = random_layer(rng)
    x = rng.standard_normal((1, IN), np.float32)
    times: dict[str, list[float]] = {"x (W + A B)": [], "x W + (x A) B": []}
    for _ in range(30):  # in turn, so that a busy machine is fair to both
        start = time.perf_counter()
        merged = x @ (w + a @ b)
        middle = time.perf_counter()
        beside = x @ w + (x @ a) @ b
        times["x (W + A B)"].append(middle - start)
        times["x W + (x A) B"].append(time.perf_counter() - middle)
    formed = {"x (W + A B)": 2 * w.nbytes + merged.nbytes, "x W + (x A) B": 4 * RANK + 3 * beside.nbytes}
    for name, seconds in times.items():  # what is formed on the way: A B and the sum; x A and three rows
        print(f"    {name:14} {statistics.median(seconds) * 1e3:8.3f} ms {formed[name]:12,} bytes formed on the way")
    conclude("both give the same", bool(np.allclose(merged, beside, atol=1e-4)))
    conclude(
        "beside W the low-rank product needs a small part of the memory", formed["x W + (x A) B"] < 0.01 * w.nbytes
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="LoRA from scratch, wrong and right")
    parser.add_argument("--seed", type=int, default=0)
    rng = np.random.default_rng(parser.parse_args().seed)
    the_faulty_form(rng)
    the_right_form(rng)
    the_price(rng)


if __name__ == "__main__":
    main()
