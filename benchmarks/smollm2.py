"""SmolLM2-135M as every side reads it: a folder of float32 weights, and PEFT adapters of rank 16 on all its linears."""

from __future__ import annotations

import json
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build" / "benchmarks"


def model_folder() -> Path:
    """Write the packaged Q4_1 model, decoded, as config.json and model.safetensors, once; return the folder."""
    import minilora as ml
    from minilora.formats.safetensors import write_safetensors

    folder = BUILD / "smollm2-135m"
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model = ml.load_model("smollm2-135m")
    tensors = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name == "lm_head" or weight is None:
            continue  # the head is the embedding
        if isinstance(weight, ml.FrozenWeight):  # files hold a linear layer as (out, in)
            weight = weight.dequantize() if name.endswith("embed_tokens") else weight.dequantize().T
        tensors[f"{name}.weight"] = weight
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    c = model.config
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "float32",
        "vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "max_position_embeddings": c.max_position_embeddings, "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_theta, "tie_word_embeddings": c.tie_word_embeddings,
        "bos_token_id": c.bos_token_id, "eos_token_id": list(c.eos_token_ids),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))  # last: its presence says that all is there
    return folder


def adapter_folder(number: int = 0) -> Path:
    """Write a PEFT adapter with random A and B, once; return the folder."""
    import numpy as np

    import minilora as ml

    folder = BUILD / f"adapter-{number}"
    if (folder / "adapter_config.json").exists():
        return folder
    model = ml.load_model(model_folder())
    ml.add_adapter(model, ml.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), seed=number)
    rng = np.random.default_rng(number)
    for param in ml.adapter_parameters(model):
        if not param.data.any():  # B starts at zero, and a product with zero would prove nothing
            param.writable()[...] = 0.01 * rng.standard_normal(param.shape, dtype=np.float32)
    ml.save_adapter(model, folder)
    return folder
