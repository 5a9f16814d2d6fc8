"""Load a model from a Hugging Face folder, a GGUF file, or the name of an installed model package."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minilora import kernels
from minilora.errors import FormatError
from minilora.formats.gguf import GGUFFile, open_gguf
from minilora.formats.mapped import printable, read_file
from minilora.formats.packaged import find_model
from minilora.formats.safetensors import SafetensorsFile, open_safetensors
from minilora.kernels import FrozenWeight
from minilora.models.config import LlamaConfig
from minilora.models.llama import Llama, build

Array = NDArray[Any]

_ADVICE = "fetch the model again, or make its configuration and its weights those of one model"

_GGUF_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_GGUF_ROOT = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def load_model(path: str | os.PathLike[str], *, dequantize: bool | None = None) -> Llama:
    """Load a Llama-family model; its matrices stay as they are stored, mapped from the file.

    path        a folder with config.json and *.safetensors, a .gguf file, or a packaged name such as "smollm2-135m"
    dequantize  True: decode every matrix to float32 now, which takes more memory and saves a little time a step;
                None: where the compiled kernel is not in use, since NumPy would decode them again for every product.
                Storages that the kernel cannot read are decoded in any case

    FormatError for a damaged file, missing or unexpected tensors and wrong shapes (all are listed);
    ConfigError where there is no such model.
    """
    found = find_model(path)
    kept = () if (not kernels.use_native() if dequantize is None else dequantize) else kernels.STORAGES
    if found.is_dir():
        return _from_folder(found, kept)
    return _from_gguf(open_gguf(found), kept)


def _expected(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape in the file, (out, in) or (width,), of every weight a Llama has."""
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    groups, wide = config.num_key_value_heads * config.head_dim, config.intermediate_size
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (groups, hidden), "self_attn.v_proj": (groups, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (config.vocab_size, hidden), "model.norm": (hidden,)}
    for index in range(config.num_hidden_layers):
        shapes.update({f"model.layers.{index}.{name}": shape for name, shape in layer.items()})
    return shapes if config.tie_word_embeddings else {**shapes, "lm_head": (config.vocab_size, hidden)}


def _check_tensors(
    where: str,
    config: LlamaConfig,
    found: Mapping[str, tuple[int, ...]],
    names: Callable[[str], str],
    ignored: set[str],
) -> None:
    """Compare the tensors a file holds with those its configuration needs; report every difference at once."""
    if config.num_hidden_layers > len(found):  # before anything is made for each layer that a file claims
        raise FormatError(
            f"{where}: the configuration says {config.num_hidden_layers} layers, the file has {len(found)} tensors\n"
            f"  {_ADVICE}"
        )
    wanted = {names(path): shape for path, shape in _expected(config).items()}
    wrong = [f"{name} is missing, expected {shape}" for name, shape in wanted.items() if name not in found]
    wrong += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in wanted.items() if name in found and tuple(found[name]) != shape
    ]  # fmt: skip
    wrong += [
        f"{printable(name)} is not part of this architecture"
        for name in found
        if name not in wanted and name not in ignored
    ]
    if wrong:
        shown = "\n  ".join(wrong[:10])
        more = f"\n  … and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise FormatError(f"{where}: {len(wrong)} tensors do not fit the configuration\n  {shown}{more}\n  {_ADVICE}")


def _from_gguf(file: GGUFFile, kept: Collection[str]) -> Llama:
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    table = shapes.get("token_embd.weight")
    if table is None:
        raise FormatError(f"{file.path}: tensor token_embd.weight is missing, so this is no language model")
    tied = "output.weight" not in shapes
    config = LlamaConfig.from_gguf(file.metadata, int(table[0]), tied, file.path)
    _check_tensors(file.path, config, shapes, lambda path: f"{_gguf_name(path)}.weight", {"rope_freqs.weight"})

    def weight(path: str) -> FrozenWeight:
        name = f"{_gguf_name(path)}.weight"
        storage = file.tensors[name].storage
        stored = file.blocks(name) if storage in kept else file.array(name)
        if path.endswith(("q_proj", "k_proj")):
            stored = _unpermuted(stored, config.head_dim)
        return _frozen(stored, storage if storage in kept else "f32", path)

    def vector(path: str) -> Array:
        return _read_only(file.array(f"{_gguf_name(path)}.weight"))

    frequencies = None
    if "rope_freqs.weight" in shapes:  # Llama 3.1 and later: one divisor a pair of components
        divisors = file.array("rope_freqs.weight").astype(np.float64)
        if divisors.shape != (config.head_dim // 2,) or not (np.isfinite(divisors) & (divisors > 0)).all():
            raise FormatError(
                f"{file.path}: rope_freqs.weight holds {divisors.size} numbers from {divisors.min()} to "
                f"{divisors.max()}, expected {config.head_dim // 2} positive numbers"
            )
        frequencies = config.rotary_frequencies() / divisors
    return build(config, weight, vector, frequencies)


def _gguf_name(path: str) -> str:
    """model.layers.3.mlp.up_proj -> blk.3.ffn_up"""
    if path in _GGUF_ROOT:
        return _GGUF_ROOT[path]
    _, _, index, name = path.split(".", 3)
    return f"blk.{index}.{_GGUF_LAYER[name]}"


def _frozen(stored: Array, storage: str, path: str) -> FrozenWeight:
    """W (in, out) from a file's matrix (out, in), or the table (V, D): its bytes, or its numbers if "f32"."""
    by_rows = path == "model.embed_tokens"
    if storage == "f32" and stored.dtype != np.uint8:
        return FrozenWeight(stored if by_rows else stored.T)
    return FrozenWeight.from_blocks(stored, storage, transposed=not by_rows)


def _unpermuted(array: Array, head_dim: int) -> Array:
    """Undo GGUF's order of q and k rows, (0, D/2, 1, D/2 + 1, …) in each head, for rotation by halves; rows whole."""
    rows, columns = array.shape
    by_pair = array.reshape(rows // head_dim, head_dim // 2, 2, columns)
    return np.ascontiguousarray(by_pair.swapaxes(1, 2)).reshape(rows, columns)


def _from_folder(folder: Path, kept: Collection[str]) -> Llama:
    config = LlamaConfig.from_hf(_read_json(folder / "config.json"), str(folder / "config.json"))
    holders = _tensors(folder)
    shapes = {name: holders[name].tensors[name].shape for name in holders}
    ignored = {name for name in shapes if name.endswith("rotary_emb.inv_freq")} | {"lm_head.weight"}
    _check_tensors(str(folder), config, shapes, lambda path: f"{path}.weight", ignored)
    if config.tie_word_embeddings and "lm_head.weight" in holders:
        head, table = (holders[name].stored(name) for name in ("lm_head.weight", "model.embed_tokens.weight"))
        if not np.array_equal(head, table):
            raise FormatError(
                f"{folder}: lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true\n"
                "  set it to false in config.json to use both, or remove the tensor"
            )

    def array(path: str) -> Array:
        name = f"{path}.weight"
        value = holders[name].array(name)
        if value.dtype.kind != "f":
            raise FormatError(f"{holders[name].path}: {name} has dtype {value.dtype}, expected floating point")
        return value.astype(np.float32, copy=False)

    def weight(path: str) -> FrozenWeight:
        holder, name = holders[f"{path}.weight"], f"{path}.weight"
        storage = holder.tensors[name].dtype.lower()
        if storage in ("bf16", "f16") and storage in kept:
            return _frozen(holder.stored(name).view(np.uint8), storage, path)
        return _frozen(array(path), "f32", path)

    return build(config, weight, lambda path: _read_only(array(path)))


def _tensors(folder: Path) -> dict[str, SafetensorsFile]:
    """Return which file holds each tensor: model.safetensors, or those that model.safetensors.index.json names.

    An index is a stranger's: it may name files in its own folder, by their bare names, and no others. Such a file
    may be a link, as all are in the cache of huggingface_hub; what is opened must be a regular file all the same.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return dict.fromkeys((file := open_safetensors(single)).tensors, file)
    if not index.exists():
        pickled = next((path.name for path in sorted(folder.glob("pytorch_model*.bin"))), None)
        advice = f"{pickled} is a pickle, which can run code: save it as safetensors" if pickled else (
            "give a folder that holds the model's safetensors files, or a .gguf file"
        )  # fmt: skip
        raise FormatError(f"{folder}: found neither {single.name} nor {index.name}\n  {advice}")
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise FormatError(f"{index}: weight_map is missing, expected an object of tensor name to file name")
    for name in sorted(set(places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FormatError(
                f"{index}: {printable(name)} is not the bare name of a .safetensors file in the same folder"
            )
    files = {name: open_safetensors(folder / name) for name in sorted(set(places.values()))}
    for tensor, name in places.items():
        if tensor not in files[name].tensors:
            raise FormatError(f"{index}: {printable(tensor)} is not in {name}; fetch the model again")
    return {tensor: files[name] for tensor, name in places.items()}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 64 MB."""
    raw = read_file(path, limit=1 << 26)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view
