"""A sentence encoder of MiniLM's shape on 32 × 64 tokens: encoding, and a LoRA step, against transformers and PEFT.

BERT (Devlin et al. 2018, arXiv:1810.04805) made of minilora's operators, as far as the comparison needs it; its weights
are random, the same on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sides import Bench, Row, verify

LAYERS, WIDTH, HEADS, WIDE, VOCABULARY, POSITIONS = 6, 384, 12, 1536, 30522, 512
BATCH, TIME, EPS = 32, 64, 1e-12
RANK, SCALE = 16, 2.0
LINEARS = {
    "attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
    "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
    "intermediate.dense": (WIDTH, WIDE), "output.dense": (WIDE, WIDTH),
}  # fmt: skip


def weights() -> tuple[dict[str, Any], dict[str, Any]]:
    """Frozen arrays, and A and B of every linear layer, by the names and in the shapes of transformers and PEFT."""
    import numpy as np

    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Any:
        return 0.05 * rng.standard_normal(shape, dtype=np.float32)

    frozen = {
        "embeddings.word_embeddings.weight": normal(VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": normal(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
    }
    low = {}
    norms = ["embeddings.LayerNorm"]
    for at in (f"encoder.layer.{index}." for index in range(LAYERS)):
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name, (k, n) in LINEARS.items():
            frozen[f"{at}{name}.weight"], frozen[f"{at}{name}.bias"] = normal(n, k), normal(n)
            low[f"{at}{name}.lora_A"], low[f"{at}{name}.lora_B"] = normal(RANK, k), normal(n, RANK)
    for name in norms:
        frozen[f"{name}.weight"], frozen[f"{name}.bias"] = 1 + normal(WIDTH), normal(WIDTH)
    return frozen, low


def batch() -> tuple[Any, Any]:
    """Token ids (BATCH, TIME), and the sentence vectors (BATCH, WIDTH) that the step trains towards."""
    import numpy as np

    rng = np.random.default_rng(4)
    return rng.integers(0, VOCABULARY, (BATCH, TIME)), rng.standard_normal((BATCH, WIDTH), dtype=np.float32)


def ours(tuned: bool) -> dict[str, Callable[[], Any]]:
    import numpy as np

    import minilora as ml

    ops = ml.ops
    arrays, factors = weights()
    frozen = {name: ml.FrozenWeight(array.T) for name, array in arrays.items() if array.ndim == 2}
    low = {
        name: ml.tensor(np.ascontiguousarray(array.T), requires_grad=True)
        for name, array in (factors if tuned else {}).items()
    }
    table = ml.FrozenWeight(arrays["embeddings.word_embeddings.weight"])
    places = (
        arrays["embeddings.position_embeddings.weight"][:TIME] + arrays["embeddings.token_type_embeddings.weight"][0]
    )
    ids, target = batch()

    def linear(x: Any, name: str) -> Any:
        weight, bias = frozen[f"{name}.weight"], arrays[f"{name}.bias"]
        if not tuned:
            return ops.linear(x, weight, bias)
        return ops.lora_matmul(x, weight, low[f"{name}.lora_A"], low[f"{name}.lora_B"], SCALE, bias)

    def norm(x: Any, name: str) -> Any:
        return ops.layer_norm(x, arrays[f"{name}.weight"], arrays[f"{name}.bias"], eps=EPS)

    def layer(x: Any, at: str) -> Any:
        """x (B, T, D) -> (B, T, D)"""
        shape = (BATCH, TIME, HEADS, WIDTH // HEADS)
        q, k, v = (
            ops.reshape(linear(x, f"{at}.attention.self.{name}"), shape=shape) for name in ("query", "key", "value")
        )
        y = ops.reshape(ops.attention(q, k, v, causal=False), shape=(BATCH, TIME, WIDTH))
        x = norm(ops.add(linear(y, f"{at}.attention.output.dense"), x), f"{at}.attention.output.LayerNorm")
        y = linear(ops.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        return norm(ops.add(y, x), f"{at}.output.LayerNorm")

    def encode() -> Any:
        """Mean over the positions of the last hidden states, (B, D)."""
        x = norm(ops.add(ops.embedding(ids, table), places), "embeddings.LayerNorm")
        for index in range(LAYERS):
            x = layer(x, f"encoder.layer.{index}")
        return ops.mean(x, axis=1)

    if not tuned:
        return {"encode": encode, "some": lambda: np.asarray(encode())[::5, ::50].tolist()}
    optimizer = ml.optim.AdamW(list(low.values()), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = ops.mse_loss(encode(), target)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return {"step": step}


def torch(tuned: bool, threads: int) -> dict[str, Callable[[], Any]]:
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(threads)
    torch.set_grad_enabled(tuned)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=WIDE, max_position_embeddings=POSITIONS, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=EPS, attn_implementation="sdpa",
    )  # fmt: skip
    bert: Any = BertModel(config, add_pooling_layer=False).eval()
    arrays, factors = weights()
    bert.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    ids, target = map(torch.from_numpy, batch())
    if not tuned:

        def encode() -> Any:
            return bert(input_ids=ids).last_hidden_state.mean(dim=1)

        return {"encode": encode, "some": lambda: encode()[::5, ::50].tolist()}
    from peft import LoraConfig, get_peft_model

    targets = ["query", "key", "value", "dense"]
    bert = get_peft_model(bert, LoraConfig(r=RANK, lora_alpha=round(SCALE * RANK), target_modules=targets))
    low = {name: param for name, param in bert.named_parameters() if param.requires_grad}
    with torch.no_grad():
        for name, param in low.items():
            param.copy_(
                torch.from_numpy(factors[name.removeprefix("base_model.model.").removesuffix(".default.weight")])
            )
    optimizer = torch.optim.AdamW(low.values(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.mse_loss(bert(input_ids=ids).last_hidden_state.mean(dim=1), target)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return {"step": step}


def rows(bench: Bench) -> Iterator[Row]:
    for what, tuned, task, rival, goal in (
        ("encode", False, "encode", "transformers", 1.4),
        ("LoRA step", True, "step", "PEFT", 1.6),
    ):
        mine, torch = bench.enter("minilora", "encoder"), bench.enter(rival, "encoder", rival=True)
        mine.make("ours", tuned=tuned)
        torch.make("torch", tuned=tuned, threads=bench.threads)
        able = [one for one in (mine, torch) if not one.lacks]
        what = f"MiniLM's shape, {BATCH} × {TIME} tokens: {what}"
        if tuned:
            verify(what, {one.name: [one.side.call(task) for _ in range(3)] for one in able}, 1e-4)
        else:
            verify(what, {one.name: one.side.call("some") for one in able}, 1e-4)
        result = bench.turns(able, task, rounds=5, seconds=0.5)
        row = Row(what, theirs=rival, goal=goal, note=torch.lacks)
        shown = {
            name: f"{result.seconds(name) * 1e3:.0f} ms" if tuned else f"{BATCH / result.seconds(name):.0f} sequences/s"
            for name in result.times
        }
        row.ours = shown["minilora"]
        if not torch.lacks:
            figures = result.ratio("minilora", rival)
            row.theirs, row.figure, row.spread = f"{rival} {shown[rival]}", figures["figure"], figures["spread"]
        yield row
        bench.close()
