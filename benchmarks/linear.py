"""The LoRA linear layer, forward and backward to x, A and B: minilora, torch + PEFT, and NumPy by hand.

Each as its user calls it: PEFT through a module and backward, minilora through Tensor and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sides import ROOT, Bench, Row, milliseconds, verify

WIDTHS, ROWS, RANK = (576, 1024, 2048, 4096), (1, 16, 64, 512), 16
GOALS = {1: 1.4, 16: 2.0, 64: 1.5, 512: 1.2}
LARGEST_SHARE = 0.08
LIBRARY = str(ROOT / "minilora" / "benchmark" / "linear.py")


def peft(m: int, k: int, n: int, r: int, threads: int) -> dict[str, Callable[[], Any]]:
    import torch
    from peft import LoraConfig, get_peft_model

    from minilora.benchmark.linear import SCALE, Size, operands, probe

    torch.set_num_threads(threads)
    x, W, A, B, grad = (torch.from_numpy(array) for array in operands(Size(m, k, n, r)))
    base = torch.nn.Sequential()
    base.add_module("proj", torch.nn.Linear(k, n, bias=False))
    model = get_peft_model(base, LoraConfig(r=r, lora_alpha=round(SCALE * r), target_modules=["proj"]))
    layer = model.base_model.model.proj
    low = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        layer.base_layer.weight.copy_(W.T)
        low[0].copy_(A.T)
        low[1].copy_(B.T)
    x.requires_grad_()

    def both() -> tuple[Any, ...]:
        x.grad = low[0].grad = low[1].grad = None
        y = model(x)
        y.backward(grad)
        return y, x.grad, low[0].grad.T, low[1].grad.T

    return {"both": both, "probe": lambda: probe(tuple(t.detach().contiguous().numpy() for t in both()))}


def rows(bench: Bench) -> Iterator[Row]:
    yield from against_rivals(bench)
    bench.close()
    yield from low_rank_share(bench)


def against_rivals(bench: Bench) -> Iterator[Row]:
    mine = bench.enter("minilora", LIBRARY)
    by_hand = bench.enter("NumPy", LIBRARY, OPENBLAS_NUM_THREADS=str(bench.threads))
    torch = bench.enter("PEFT", "linear", rival=True)
    from minilora.benchmark.linear import Size

    for d in WIDTHS:
        for m in ROWS:
            size = {"m": m, "k": d, "n": d, "r": RANK}
            mine.make("ours", **size)
            by_hand.make("numpy_by_hand", **size)
            torch.make("peft", **size, threads=bench.threads)
            able = [one for one in (mine, by_hand, torch) if not one.lacks]
            verify(f"LoRA linear {size}", {one.name: one.side.call("probe") for one in able}, 1e-4)
            result = bench.turns(able, "both", rounds=5, seconds=0.06)
            own, work = result.seconds("minilora"), Size(**size)
            yield Row(
                f"LoRA linear, d = {d}, M = {m}",
                ours=milliseconds(own),
                theirs=", ".join(f"{one.name} {milliseconds(result.seconds(one.name))}" for one in able[1:]),
                **result.ratio("minilora", [one.name for one in able[1:]]),
                goal=GOALS[m],
                share=bench.share(own, flops=work.flops("both"), nbytes=work.nbytes("both")),
                note=torch.lacks,
            )


def low_rank_share(bench: Bench) -> Iterator[Row]:
    whole, frozen = bench.enter("with adapter", LIBRARY), bench.enter("frozen product", LIBRARY)
    for d in WIDTHS[1:]:
        for m in ROWS[2:]:
            whole.make("ours", m=m, k=d, n=d, r=RANK)
            frozen.make("ours", m=m, k=d, n=d, r=0)
            result = bench.turns([whole, frozen], "forward", rounds=7, seconds=0.06)
            ratios = sorted(1 / ratio - 1 for ratio in result.ratios("with adapter", "frozen product"))
            yield Row(
                f"low-rank part of a fused forward, d = {d}, M = {m}",
                ours=milliseconds(result.seconds("with adapter")),
                theirs=f"frozen product {milliseconds(result.seconds('frozen product'))}",
                figure=1 / result.ratio("with adapter", "frozen product")["figure"] - 1,
                spread=(ratios[0], ratios[-1]),
                goal=LARGEST_SHARE,
                at_most=True,
                unit="%",
            )
