"""The Llama family of decoders: Touvron et al. 2023, arXiv:2302.13971, in Hugging Face's module names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minilora import ops
from minilora.autograd import Tensor
from minilora.errors import AdapterError, ConfigError, MiniloraError, ShapeError
from minilora.generate import KVCache, Sampling
from minilora.generate import generate as continue_from
from minilora.graph import checkpoint
from minilora.kernels import FrozenWeight
from minilora.models.config import LlamaConfig
from minilora.nn import Embedding, Linear, Module, RMSNorm

Array = NDArray[Any]
# Of a call: one for all rows, one (or None) a row, or what set_adapter chose.
Adapters = str | Sequence[str | None] | None
IGNORED = -100  # a label that is not counted


class Attention(Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, q: Linear, k: Linear, v: Linear, o: Linear) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q, k, v, o
        self.heads, self.groups, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def __call__(self, x: Any, *, cos: Array, sin: Array, mask: Any, cache: Any, layer: int) -> Any:
        """x (B, T, D) -> (B, T, D)"""
        batch, time, _ = x.shape
        q = self.q_proj(x).reshape(batch, time, self.heads, self.width)
        k = self.k_proj(x).reshape(batch, time, self.groups, self.width)
        v = self.v_proj(x).reshape(batch, time, self.groups, self.width)
        q, k = ops.rotary(q, cos, sin), ops.rotary(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(layer, _array(k), _array(v))
        y = ops.attention(q, k, v, mask)
        return self.o_proj(y.reshape(batch, time, self.heads * self.width))


class MLP(Module):
    """SwiGLU feed-forward."""

    def __init__(self, gate: Linear, up: Linear, down: Linear) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def __call__(self, x: Any) -> Any:
        """x (B, T, D) -> (B, T, D)"""
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(Module):
    """Attention and feed-forward, each behind a norm and added to the residual stream."""

    def __init__(self, attention_norm: RMSNorm, attention: Attention, mlp_norm: RMSNorm, mlp: MLP) -> None:
        self.input_layernorm, self.self_attn = attention_norm, attention
        self.post_attention_layernorm, self.mlp = mlp_norm, mlp

    def __call__(self, x: Any, **at: Any) -> Any:
        """x (B, T, D) -> (B, T, D)"""
        x = x + self.self_attn(self.input_layernorm(x), **at)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(Module):
    """Token embedding, the layers, and the last norm: ids to hidden states."""

    def __init__(self, embed_tokens: Embedding, layers: list[DecoderLayer], norm: RMSNorm) -> None:
        self.embed_tokens, self.layers, self.norm = embed_tokens, layers, norm

    def __call__(self, ids: Any, *, recompute: bool, **at: Any) -> Any:
        """ids (B, T) -> (B, T, D)"""
        x = self.embed_tokens(ids)
        for index, layer in enumerate(self.layers):
            part: Callable[[Any], Any] = partial(layer, layer=index, **at)
            x = checkpoint(part, x) if recompute else part(x)
        return self.norm(x)


class Llama(Module):
    """A Llama-family language model with frozen weights. Make one with minilora.load_model.

    model(ids) gives logits; model.loss what training minimises; model.generate continues prompts.

    gradient_checkpointing  True: for backward a layer keeps only its input, and computes the rest again there. That
                            takes a fraction of the memory and a third more time, and changes no bit of a gradient
    """

    task_type = "CAUSAL_LM"  # in PEFT's words; save_adapter writes it down
    output_head = "lm_head"  # the one linear layer that "all-linear" leaves out

    def __init__(
        self, config: LlamaConfig, decoder: Decoder, lm_head: Linear, frequencies: Array | None = None
    ) -> None:
        self.config, self.model, self.lm_head = config, decoder, lm_head
        self.gradient_checkpointing = False
        # In a tuple, so that it does not count as a weight: it follows from the configuration.
        self._frequencies = (config.rotary_frequencies() if frequencies is None else frequencies,)

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        cache: KVCache | None = None,
        adapters: Adapters = None,
        *,
        logits_to_keep: int | None = None,
    ) -> Tensor:
        """Return the logits of the token after each position.

        input_ids       (B, T)      token ids
        attention_mask  (B, P + T)  0 for padding, P positions being in the cache; None: no padding
        position_ids    (B, T)      None: counted from the first token of a row that is not padding
        cache                       positions of earlier calls, extended by this one; only without gradients
        adapters                    the adapter of this call, or one (or None) a row; None: what set_adapter chose
        logits_to_keep              compute those of the last n >= 1 positions only; None: all

        Returns (B, T or n, V) float32. ShapeError where sizes or ids do not fit, ConfigError for an n below 1.
        """
        if logits_to_keep is not None and logits_to_keep < 1:
            raise ConfigError(
                f"model: logits_to_keep is {logits_to_keep}, expected at least 1\n"
                "  leave it out for the logits of all positions"
            )
        with self._adapter(adapters, len(np.atleast_1d(input_ids))):
            hidden = self._hidden(input_ids, attention_mask, position_ids, cache)
            if logits_to_keep is not None:
                hidden = _pick(hidden, np.arange(hidden.shape[1])[-logits_to_keep:])
            logits = self.lm_head(hidden)
        return logits if isinstance(logits, Tensor) else Tensor(logits)

    def loss(
        self,
        input_ids: ArrayLike,
        labels: ArrayLike,
        attention_mask: ArrayLike | None = None,
        reduction: str = "mean",
        *,
        adapters: str | None = None,
    ) -> Tensor:
        """Return the cross-entropy of each label given the tokens before it, a 0-d tensor.

        labels     (B, T)  aligned with input_ids; -100 is not counted, nor is the first of a row
        reduction          "mean" over the counted labels, or their "sum", for accumulation over batches

        The head is computed only at positions whose next token is counted; without an adapter of its own it is one with
        the loss, and a few hundred positions have logits at a time.
        """
        if reduction not in ("mean", "sum"):
            raise ConfigError(f"loss: reduction is {reduction!r}, expected 'mean' or 'sum'")
        ids, wanted = np.asarray(input_ids), np.asarray(labels)
        if wanted.shape != ids.shape:
            raise ShapeError(f"loss: labels has shape {wanted.shape}, but input_ids has {ids.shape}")
        with self._adapter(adapters, 1):
            hidden = self._hidden(ids, attention_mask, None, None)
            weight, settings = self.lm_head.plain_weight(), {"ignore_index": IGNORED, "reduction": reduction}
            if weight is not None:
                loss = ops.linear_cross_entropy(hidden[:, :-1], weight, wanted[:, 1:], **settings)
            else:
                rows, columns = np.nonzero(wanted[:, 1:] != IGNORED)
                flat = ops.reshape(hidden, shape=(-1, hidden.shape[-1]))
                logits = self.lm_head(ops.embedding(rows * ids.shape[1] + columns, flat))
                loss = ops.cross_entropy(logits, wanted[rows, columns + 1], **settings)
        return loss if isinstance(loss, Tensor) else Tensor(loss)

    def count_labels(self, labels: ArrayLike) -> int:
        """Return how many of the labels (B, T) ``loss`` counts."""
        wanted = np.asarray(labels)
        if wanted.ndim != 2:
            raise ShapeError(f"count_labels: labels has shape {wanted.shape}, expected (batch, time)")
        return int((wanted[:, 1:] != IGNORED).sum())

    def generate(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Collection[int] | None = None,
        adapters: Adapters = None,
        *,
        cache: KVCache | None = None,
    ) -> Array:
        """Return prompts and continuations as ids (B, T + n), by a key-value cache.

        input_ids, attention_mask  (B, T)  prompts, padded on the left
        temperature                0 is greedy; see generate.Sampling for top_k and top_p
        stop                       ids that end a row; None: the model's end tokens; the first of them fills short rows
        adapters                   as in a call of the model
        """
        stops = self.config.eos_token_ids if stop is None else tuple(stop)
        by_row = None if adapters is None or isinstance(adapters, str) else tuple(adapters)
        with self._adapter(adapters, len(np.atleast_2d(input_ids))):
            return continue_from(
                self, input_ids, attention_mask, max_new_tokens=max_new_tokens, stop=stops,
                sampling=Sampling(temperature, top_k, top_p), seed=seed,
                pad=stops[0] if stops else 0, cache=cache, adapters=by_row,
            )  # fmt: skip

    def _adapter(self, names: Adapters, rows: int) -> Any:
        """A block that uses an adapter, or one a row of a batch; nullcontext for what set_adapter chose."""
        if names is None:
            return nullcontext()
        each = (names,) if isinstance(names, str) else tuple(names)
        if not isinstance(names, str) and len(each) != rows:
            raise ShapeError(f"adapters: {len(each)} names for a batch of {rows} rows; give one (or None) a row")
        known = {name for _, m in self.named_modules() if isinstance(m, Linear) for name in m.adapters}
        for name in each:
            if self.adapter_choice is None or not (name in known if isinstance(name, str) else name is None):
                raise AdapterError(f"adapters: the model has no adapter named {name!r}; add or load it first")
        assert self.adapter_choice is not None
        return self.adapter_choice.during(each[0] if len(set(each)) == 1 else each)

    def _hidden(self, input_ids: ArrayLike, attention_mask: Any, position_ids: Any, cache: KVCache | None) -> Any:
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise ShapeError(
                f"model: input_ids has shape {ids.shape}, dtype {ids.dtype}; expected integers (batch, time)"
            )
        past = cache.length if cache is not None else 0
        mask = None if attention_mask is None else np.asarray(attention_mask) != 0
        if mask is not None and mask.shape != (ids.shape[0], past + ids.shape[1]):
            raise ShapeError(
                f"model: attention_mask has shape {mask.shape}, expected {(ids.shape[0], past + ids.shape[1])} "
                f"(batch, {past} cached + {ids.shape[1]} new positions)"
            )
        if position_ids is not None:
            positions = np.asarray(position_ids)
            fitting = ids.shape, (1, ids.shape[1]), ids.shape[1:]
            if positions.dtype.kind not in "iu" or positions.shape not in fitting:
                raise ShapeError(
                    f"model: position_ids has shape {positions.shape}, dtype {positions.dtype}; "
                    f"expected integers {ids.shape} (batch, time)"
                )
            positions = np.broadcast_to(positions, ids.shape)
        elif mask is None:
            positions = np.broadcast_to(np.arange(past, past + ids.shape[1]), ids.shape)
        else:
            positions = np.maximum(np.cumsum(mask, axis=1)[:, past:] - 1, 0)
        angles = positions[..., None] * self._frequencies[0]
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        if mask is not None and mask.all():
            mask = None
        hidden = self.model(ids, recompute=self.gradient_checkpointing, cos=cos, sin=sin, mask=mask, cache=cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return hidden


def _array(x: Any) -> Array:
    """The ndarray of keys or values that go into a cache, where no gradient can follow."""
    if not isinstance(x, Tensor):
        return x
    if x.requires_grad:
        raise MiniloraError("model: a cache cannot carry gradients; call the model inside no_grad(), or without cache")
    return x.data


def _pick(hidden: Any, columns: Array) -> Any:
    """Return positions (B, n, D) of hidden (B, T, D)."""
    batch, time, width = hidden.shape
    index = np.arange(batch)[:, None] * time + columns
    return ops.embedding(index, ops.reshape(hidden, shape=(-1, width)))


def build(
    config: LlamaConfig,
    weight: Callable[[str], FrozenWeight],
    vector: Callable[[str], Array],
    frequencies: Array | None = None,
) -> Llama:
    """Assemble a Llama from ``weight(path)`` -> FrozenWeight (in, out) and ``vector(path)`` -> ndarray."""

    def linear(path: str) -> Linear:
        return Linear.from_weight(weight(path))

    def norm(path: str) -> RMSNorm:
        return RMSNorm(vector(path), config.rms_norm_eps)

    def layer(at: str) -> DecoderLayer:
        attention = Attention(config, *(linear(f"{at}.self_attn.{name}_proj") for name in "qkvo"))
        mlp = MLP(*(linear(f"{at}.mlp.{name}_proj") for name in ("gate", "up", "down")))
        return DecoderLayer(norm(f"{at}.input_layernorm"), attention, norm(f"{at}.post_attention_layernorm"), mlp)

    table = weight("model.embed_tokens")
    layers = [layer(f"model.layers.{i}") for i in range(config.num_hidden_layers)]
    head = Linear.from_weight(table.T) if config.tie_word_embeddings else linear("lm_head")
    return Llama(config, Decoder(Embedding(table), layers, norm("model.norm")), head, frequencies)
