"""A Llama's forward pass in float64, a token and a head at a time: slow, and independent of the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def frequencies(config: dict[str, Any]) -> list[float]:
    """Radians per position of each pair of components; llama3 scaling by wavelengths, as its authors wrote it."""
    rope = config.get("rope_scaling") or {}
    width, found = config["head_dim"], []
    for pair in range(width // 2):
        frequency = 1 / config["rope_theta"] ** (2 * pair / width)
        if rope.get("rope_type") == "linear":
            frequency /= rope["factor"]
        elif rope.get("rope_type") == "llama3":
            context, wavelength = rope["original_max_position_embeddings"], 2 * math.pi / frequency
            if wavelength > context / rope["low_freq_factor"]:
                frequency /= rope["factor"]
            elif wavelength >= context / rope["high_freq_factor"]:
                smooth = (context / wavelength - rope["low_freq_factor"]) / (
                    rope["high_freq_factor"] - rope["low_freq_factor"]
                )
                frequency = (1 - smooth) * frequency / rope["factor"] + smooth * frequency
        found.append(frequency)
    return found


def logits(
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    ids: Sequence[int],
    *,
    positions: Sequence[int] | None = None,
    visible: Sequence[bool] | None = None,
    angles: Sequence[float] | None = None,
    trigonometry: Callable[[float], Any] = float,
) -> np.ndarray:
    """Logits (T, V) of one row of tokens.

    weights       by path, (out, in); float64 is computed with whatever they are
    visible       False for tokens that no other may look at
    angles        radians per position and pair; the configuration's if not given
    trigonometry  what sine and cosine are rounded by
    """
    weights = {path: w.astype(np.float64) for path, w in weights.items()}
    angles = frequencies(config) if angles is None else angles
    positions = list(range(len(ids))) if positions is None else positions
    visible = [True] * len(ids) if visible is None else visible
    heads, groups, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

    def norm(x: np.ndarray, path: str) -> np.ndarray:
        return x / math.sqrt(float(x @ x) / len(x) + config["rms_norm_eps"]) * weights[path]

    def turned(head: np.ndarray, position: int) -> np.ndarray:
        out = np.empty(width)
        for pair, frequency in enumerate(angles):
            c, s = (float(trigonometry(f(position * frequency))) for f in (math.cos, math.sin))
            a, b = head[pair], head[pair + width // 2]
            out[pair], out[pair + width // 2] = a * c - b * s, b * c + a * s
        return out

    stream = [weights["model.embed_tokens"][token].copy() for token in ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        keys: list[list[np.ndarray]] = []
        values: list[list[np.ndarray]] = []
        queries: list[list[np.ndarray]] = []
        for x, position in zip(stream, positions, strict=True):
            x = norm(x, f"{at}.input_layernorm")
            q, k, v = (weights[f"{at}.self_attn.{name}_proj"] @ x for name in "qkv")
            queries.append([turned(q[h * width : (h + 1) * width], position) for h in range(heads)])
            keys.append([turned(k[g * width : (g + 1) * width], position) for g in range(groups)])
            values.append([v[g * width : (g + 1) * width] for g in range(groups)])
        for t in range(len(ids)):
            attended = []
            for h in range(heads):
                g = h * groups // heads
                seen = [s for s in range(t + 1) if visible[s]]
                scores = [float(queries[t][h] @ keys[s][g]) / math.sqrt(width) for s in seen]
                shares = [math.exp(score - max(scores)) for score in scores]
                total = np.zeros(width)
                for share, s in zip(shares, seen, strict=True):
                    total += share / sum(shares) * values[s][g]
                attended.append(total)
            stream[t] = stream[t] + weights[f"{at}.self_attn.o_proj"] @ np.concatenate(attended)
            x = norm(stream[t], f"{at}.post_attention_layernorm")
            gate, up = (weights[f"{at}.mlp.{name}_proj"] @ x for name in ("gate", "up"))
            swiglu = np.array([g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)])
            stream[t] = stream[t] + weights[f"{at}.mlp.down_proj"] @ swiglu
    head = weights["model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"]
    return np.array([head @ norm(x, "model.norm") for x in stream])
