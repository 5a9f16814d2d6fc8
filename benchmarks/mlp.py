"""The textbook example: an MLP 784-1024-1024-10, all three W frozen, a LoRA on the middle one, batch 128.

Forward, cross-entropy, and the gradients of A and B, by minilora, torch, HIPS autograd and MyGrad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from sides import Bench, Row, milliseconds, verify

BATCH, WIDTHS, RANK, SCALE = 128, (784, 1024, 1024, 10), 16, 2.0
GOALS = {"torch": 1.2, "HIPS autograd": 2.5, "MyGrad": 4.0}
Step = Callable[[], Any]


def operands() -> Any:
    """x, labels, the three W (in, out), A and B."""
    import numpy as np

    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[0]) ** 0.5

    x, labels = rng.standard_normal((BATCH, WIDTHS[0]), dtype=np.float32), rng.integers(0, WIDTHS[-1], BATCH)
    weights = [normal(k, n) for k, n in pairwise(WIDTHS)]
    return x, labels, weights, normal(WIDTHS[1], RANK), normal(RANK, WIDTHS[2])


def tasks(step: Step) -> dict[str, Step]:
    """The step, and what two sides must agree in: the loss and parts of both gradients."""

    def some() -> list[Any]:
        loss, grad_A, grad_B = step()
        return [float(loss), grad_A[::100, ::5].tolist(), grad_B[::5, ::100].tolist()]

    return {"step": step, "some": some}


def minilora() -> dict[str, Step]:
    import minilora as ml

    x, labels, (w1, w2, w3), A, B = operands()
    first, second, third = map(ml.FrozenWeight, (w1, w2, w3))
    a, b = ml.tensor(A, requires_grad=True), ml.tensor(B, requires_grad=True)
    ops = ml.ops

    def step() -> Any:
        a.grad = b.grad = None
        hidden = ops.relu(ops.linear(x, first))
        hidden = ops.relu(ops.lora_matmul(hidden, second, a, b, SCALE))
        loss = ops.cross_entropy(ops.linear(hidden, third), labels)
        loss.backward()
        return loss.data, a.grad, b.grad

    return tasks(step)


def torch(threads: int) -> dict[str, Step]:
    import torch

    torch.set_num_threads(threads)
    x, labels, weights, A, B = operands()
    x, labels, (w1, w2, w3) = torch.from_numpy(x), torch.from_numpy(labels), map(torch.from_numpy, weights)
    a, b = torch.from_numpy(A).requires_grad_(), torch.from_numpy(B).requires_grad_()

    def step() -> Any:
        a.grad = b.grad = None
        hidden = torch.relu(x @ w1)
        hidden = torch.relu(hidden @ w2 + SCALE * (hidden @ a @ b))
        loss = torch.nn.functional.cross_entropy(hidden @ w3, labels)
        loss.backward()
        return loss.detach(), a.grad, b.grad

    return tasks(step)


def hips_autograd() -> dict[str, Step]:
    import autograd
    import autograd.numpy as anp

    x, labels, (w1, w2, w3), A, B = operands()
    scale, rows = x.dtype.type(SCALE), anp.arange(BATCH)

    def loss(low: Any) -> Any:
        hidden = anp.maximum(anp.dot(x, w1), 0)
        hidden = anp.maximum(anp.dot(hidden, w2) + scale * anp.dot(anp.dot(hidden, low[0]), low[1]), 0)
        logits = anp.dot(hidden, w3)
        peak = anp.max(logits, axis=1, keepdims=True)
        log_total = anp.log(anp.sum(anp.exp(logits - peak), axis=1)) + peak[:, 0]
        return anp.mean(log_total - logits[rows, labels])

    both = autograd.value_and_grad(loss)

    def step() -> Any:
        value, (grad_A, grad_B) = both((A, B))
        return value, grad_A, grad_B

    return tasks(step)


def mygrad() -> dict[str, Step]:
    import mygrad
    from mygrad.nnet.activations import relu
    from mygrad.nnet.losses import softmax_crossentropy

    x, labels, (w1, w2, w3), A, B = operands()

    def step() -> Any:
        a, b = mygrad.tensor(A), mygrad.tensor(B)
        hidden = relu(mygrad.matmul(x, w1))
        hidden = relu(mygrad.matmul(hidden, w2) + x.dtype.type(SCALE) * mygrad.matmul(mygrad.matmul(hidden, a), b))
        loss = softmax_crossentropy(mygrad.matmul(hidden, w3), labels)
        loss.backward()
        return loss.item(), a.grad, b.grad

    return tasks(step)


def rows(bench: Bench) -> Iterator[Row]:
    mine = bench.enter("minilora", "mlp")
    mine.make("minilora")
    rivals = [bench.enter(name, "mlp", rival=True) for name in GOALS]
    for rival, maker in zip(rivals, ("torch", "hips_autograd", "mygrad"), strict=True):
        rival.make(maker, **({"threads": bench.threads} if maker == "torch" else {}))
    able = [mine, *(rival for rival in rivals if not rival.lacks)]
    verify("MLP", {one.name: one.side.call("some") for one in able}, 1e-4)
    result = bench.turns(able, "step", rounds=9, seconds=0.1)
    d, h, o = WIDTHS[0], WIDTHS[1], WIDTHS[-1]
    # Backward: grad · w3ᵀ, then grad_h, A's and B's gradients; nothing behind the adapter.
    products = d * h + h * h + 2 * RANK * h + 2 * h * o + 3 * RANK * h
    for rival in rivals:
        row = Row("MLP 784-1024-1024-10 with LoRA, batch 128", theirs=rival.name, goal=GOALS[rival.name])
        if rival.lacks:
            row.note = rival.lacks
        else:
            own = result.seconds("minilora")
            figures = result.ratio("minilora", rival.name)
            row.ours, row.theirs = milliseconds(own), f"{rival.name} {milliseconds(result.seconds(rival.name))}"
            row.figure, row.spread = figures["figure"], figures["spread"]
            row.share = bench.share(own, flops=2 * BATCH * products, nbytes=4 * (d * h + h * h))
        yield row
