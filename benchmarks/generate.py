"""Generation with SmolLM2-135M: tokens one by one from weights in several storages, and the reading of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sides import Bench, Row, verify

DECODE_GOALS = {"f32": 0.85, "bf16": 0.80, "q8_0": 0.60, "q4_1": 0.45}
PROMPT, START = 256, 32  # tokens
LLAMA_CPP = "llama.cpp is compared by hand, where it is built"


def ids(count: int) -> list[list[int]]:
    import random

    draw = random.Random(1)
    return [[draw.randrange(100, 40_000) for _ in range(count)]]


def stored_as(weight: Any, storage: str) -> Any:
    """Quantise rows (n, columns) float32 to the blocks of a storage, uint8: round to nearest, as GGUF lays them out."""
    import numpy as np

    if storage == "bf16":
        bits = weight.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)
    blocks = weight.reshape(len(weight), -1, 32)
    if storage == "q8_0":
        step = abs(blocks).max(-1, keepdims=True) / 127
        half = step.astype("<f2")
        steps = np.rint(blocks / np.maximum(half.astype(np.float32), 1e-30)).clip(-127, 127).astype(np.int8)
        parts = [half.view(np.uint8), steps.view(np.uint8)]
    else:  # q4_1
        low = blocks.min(-1, keepdims=True)
        half = ((blocks.max(-1, keepdims=True) - low) / 15).astype("<f2")
        q = np.rint((blocks - low) / np.maximum(half.astype(np.float32), 1e-30)).clip(0, 15).astype(np.uint8)
        parts = [half.view(np.uint8), low.astype("<f2").view(np.uint8), q[..., :16] | q[..., 16:] << 4]
    return np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(len(weight), -1))


def ours(model: str, storage: str = "f32") -> dict[str, Callable[[], Any]]:
    import numpy as np

    import minilora as ml
    from minilora.generate import KVCache

    llama: Any = ml.load_model(model)
    if storage != "f32":
        restore(llama, storage)
    linears: list[Any] = [m.weight for _, m in llama.named_modules() if isinstance(m, ml.nn.Linear)]
    cache, token = KVCache(), np.zeros((1, 1), np.int64)

    def logits(input_ids: Any, **settings: Any) -> Any:
        with ml.no_grad():
            return llama(np.array(input_ids), logits_to_keep=1, **settings).data[0, -1]

    def begin() -> list[float]:
        nonlocal cache
        cache = KVCache()
        found = logits(ids(START), cache=cache)
        token[0, 0] = found.argmax()
        return found[::100].tolist()

    def decode() -> int:
        token[0, 0] = logits(token, cache=cache).argmax()
        return int(token[0, 0])

    def decoded() -> list[list[float]]:
        """The same logits from the weights in float32, as NumPy decodes them."""
        found = begin()
        module: Any
        for _, module in llama.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, ml.FrozenWeight):
                module.weight = ml.FrozenWeight(weight.dequantize())
        again = begin()
        return [found, again]

    return {
        "begin": begin,
        "decode": decode,
        "decoded": decoded,
        "prompt": lambda: logits(ids(PROMPT))[::100].tolist(),
        "streamed": lambda: sum(int(weight.nbytes) for weight in linears),
    }


def restore(llama: Any, storage: str) -> None:
    """Keep every matrix of the model in this storage."""
    import minilora as ml

    def kept(stored: Any, transposed: bool) -> Any:
        return ml.FrozenWeight.from_blocks(stored_as(stored, storage), storage, transposed=transposed)

    table = llama.model.embed_tokens
    table.weight = kept(table.weight.dequantize(), transposed=False)
    for name, module in llama.named_modules():
        if name == "lm_head":
            module.weight = table.weight.T
        elif isinstance(module, ml.nn.Linear):
            module.weight = kept(module.weight.dequantize().T, transposed=True)  # type: ignore[union-attr]


def transformers(model: str, threads: int) -> dict[str, Callable[[], Any]]:
    import torch
    from transformers import DynamicCache, LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    llama = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    cache, token = DynamicCache(), torch.zeros((1, 1), dtype=torch.long)

    def begin() -> list[float]:
        nonlocal cache
        cache = DynamicCache()
        found = llama(torch.tensor(ids(START)), past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        token[0, 0] = found.argmax()
        return found[::100].tolist()

    def decode() -> int:
        found = llama(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        token[0, 0] = found.argmax()
        return int(token[0, 0])

    def prompt() -> list[float]:
        return llama(torch.tensor(ids(PROMPT)), use_cache=False, logits_to_keep=1).logits[0, -1, ::100].tolist()

    return {"begin": begin, "decode": decode, "prompt": prompt}


def rows(bench: Bench) -> Iterator[Row]:
    import smollm2

    model = str(smollm2.model_folder())
    mine, torch = bench.enter("minilora", "generate"), bench.enter("transformers", "generate", rival=True)
    mine.make("ours", model=model)
    torch.make("transformers", model=model, threads=bench.threads)
    able = [one for one in (mine, torch) if not one.lacks]
    verify("logits after the start", {one.name: one.side.call("begin") for one in able}, 1e-4)
    verify("tokens", {one.name: [one.side.call("decode") for _ in range(8)] for one in able}, 0)
    result = bench.turns(able, "decode", rounds=5, seconds=0.5)
    theirs = "" if torch.lacks else f"transformers {1 / result.seconds('transformers'):.1f} tok/s"
    yield decode_row(bench, "f32", mine.side.call("streamed"), result.seconds("minilora"), theirs)
    verify("logits after the prompt", {one.name: one.side.call("prompt") for one in able}, 1e-4)
    result = bench.turns(able, "prompt", rounds=5)
    row = Row(
        f"prompt of {PROMPT} tokens",
        ours=f"{PROMPT / result.seconds('minilora'):.0f} tok/s",
        theirs="transformers f32",
        goal=1.5,
        note=torch.lacks,
    )
    if not torch.lacks:
        figures = result.ratio("minilora", "transformers")
        row.theirs += f" {PROMPT / result.seconds('transformers'):.0f} tok/s"
        row.figure, row.spread = figures["figure"], figures["spread"]
    yield row
    yield Row(f"prompt of {PROMPT} tokens", theirs="llama.cpp Q4_1", goal=3.0, note=LLAMA_CPP)
    bench.close()
    for storage in ("bf16", "q8_0", "q4_1"):
        mine = bench.enter("minilora", "generate")
        mine.make("ours", model=model, storage=storage)
        mine.side.call("begin")
        result = bench.turns([mine], "decode", rounds=3, seconds=0.5)
        yield decode_row(bench, storage, mine.side.call("streamed"), result.seconds("minilora"), "")
        kept, as_floats = mine.side.call("decoded")
        verify(f"logits from {storage} weights", {"decoded": as_floats, "kept": kept}, 1e-4)
        bench.close()
    yield Row("decode from the Q4_1 file, exact", theirs="llama.cpp Q4_1", goal=1.0, note=LLAMA_CPP)
    yield Row("decode from the Q4_1 file, int8 activations", theirs="llama.cpp Q4_1", goal=1.3, note=LLAMA_CPP)


def decode_row(bench: Bench, storage: str, streamed: int, seconds: float, theirs: str) -> Row:
    read = bench.roofline.bandwidth(streamed)
    limit = f"{read / 1e9:.1f} GB/s read from {streamed / 1e9:.2f} GB"
    return Row(
        f"decode, batch 1, {storage}",
        ours=f"{1 / seconds:.1f} tok/s, {streamed / seconds / 1e9:.1f} GB/s",
        theirs=f"{limit}; {theirs}" if theirs else limit,
        figure=streamed / seconds / read,
        goal=DECODE_GOALS[storage],
        unit="%",
    )
