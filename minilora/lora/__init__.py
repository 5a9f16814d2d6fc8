"""Low-rank adapters: settings, which layers they mean, attaching, saving, and loading with a receipt."""

from minilora.lora.attach import (
    active_adapter,
    adapter_layers,
    adapter_parameters,
    adapters_disabled,
    add_adapter,
    delete_adapter,
    set_adapter,
)
from minilora.lora.config import LoraConfig
from minilora.lora.load import load_adapter
from minilora.lora.receipt import LayerReceipt, Receipt
from minilora.lora.save import save_adapter
from minilora.lora.targets import find_targets

__all__ = [
    "LayerReceipt",
    "LoraConfig",
    "Receipt",
    "active_adapter",
    "adapter_layers",
    "adapter_parameters",
    "adapters_disabled",
    "add_adapter",
    "delete_adapter",
    "find_targets",
    "load_adapter",
    "save_adapter",
    "set_adapter",
]
