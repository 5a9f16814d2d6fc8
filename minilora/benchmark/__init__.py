"""What this machine reaches: its limits, and the LoRA linear layer beside NumPy. `minilora bench` prints it."""

from minilora.benchmark.compare import Checked, Limits, Roofline, Settings, Timed, measure
from minilora.benchmark.sides import Duel, Missing, Side, SideError, take_turns

__all__ = [
    "Checked",
    "Duel",
    "Limits",
    "Missing",
    "Roofline",
    "Settings",
    "Side",
    "SideError",
    "Timed",
    "measure",
    "take_turns",
]
