"""Verify the kernel, measure the machine, then time both sides of the LoRA linear layer, each in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minilora.benchmark import machine
from minilora.benchmark.linear import Size
from minilora.benchmark.sides import Duel, Side, SideError, take_turns

HERE = Path(__file__).resolve().parent
PARTS = ("forward", "both")


@dataclass(frozen=True)
class Settings:
    """What to measure.

    threads  of the kernel and of NumPy; None: the processors that this process may use
    isa      instruction set that both are held to; None: the fastest
    quick    small sizes and short turns: a look, no measurement to rely on
    """

    threads: int | None = None
    isa: str | None = None
    quick: bool = False

    @property
    def sizes(self) -> list[Size]:
        widths, rows = ((64, 576), (1, 16)) if self.quick else ((576, 1024, 2048, 4096), (1, 16, 64, 512))
        return [Size(m, d, d, 16) for d in widths for m in rows]

    @property
    def rounds(self) -> int:
        return 2 if self.quick else 7

    @property
    def seconds(self) -> float:
        """Of one turn of one side."""
        return 0.005 if self.quick else 0.06


@dataclass(frozen=True)
class Limits:
    """What the machine reaches at most with so many threads: FLOP/s, and bytes/s by bytes of the buffer read."""

    threads: int
    peak_flops: float
    read_bandwidth: dict[int, float]


@dataclass(frozen=True)
class Checked:
    """Largest errors at one size, as shares of the bound: by result, the kernel's and NumPy's."""

    size: Size
    errors: dict[str, list[float]]

    @property
    def worst(self) -> float:
        return max(kernel for kernel, _ in self.errors.values())

    @property
    def worst_of_numpy(self) -> float:
        return max(numpy for _, numpy in self.errors.values())


@dataclass(frozen=True)
class Timed:
    """One part at one size: both sides' times, and the least time that the machine's limits allow."""

    size: Size
    part: str  # "forward" or "both"
    duel: Duel
    least: float  # seconds
    binds: str  # which limit that is: "FLOP/s" or "bandwidth"

    @property
    def share(self) -> float:
        """The limit's share that the kernel reaches, 0 to 1."""
        return self.least / self.duel.seconds[0]

    def facts(self) -> dict[str, Any]:
        """Ready for JSON."""
        ours, theirs = self.duel.seconds
        return {
            **asdict(self.size), "part": self.part, "kernel_seconds": ours, "numpy_seconds": theirs,
            "ratio": self.duel.ratio, "ratios": self.duel.ratios, "flops": self.size.flops(self.part),
            "nbytes": self.size.nbytes(self.part), "roofline_seconds": self.least, "binds": self.binds,
            "share": self.share,
        }  # fmt: skip


def measure(settings: Settings) -> Iterator[dict[str, Any] | Limits | Checked | Timed]:
    """Yield the machine's facts, its limits for one and all threads, then for each size the check and the times.

    Raises ConfigError without a compiled kernel or for an instruction set that does not run here, SideError where
    a result is outside its bound or the sides disagree.
    """
    from minilora import kernels

    machine.check_isa(settings.isa)
    threads = settings.threads or kernels.threads()
    environment = machine.settings(threads, settings.isa)
    # Beside the kernel's own threads those of NumPy's BLAS would only stand in the way.
    quiet = {**environment, "OPENBLAS_NUM_THREADS": "1", "MINILORA_BACKEND": "native"}
    with (
        Side(HERE / "machine.py", environment=quiet) as limits,
        Side(HERE / "linear.py", environment=quiet) as kernel,
        Side(HERE / "linear.py", environment=environment) as by_hand,
    ):
        limits.make("limits")
        yield limits.call("facts")
        buffers = (1 << 20,) if settings.quick else (1 << 20, 1 << 26, 1 << 30)
        for count in sorted({1, threads}):
            reads = {size: limits.call("read_bandwidth", nbytes=size, threads=count) for size in buffers}
            yield Limits(count, limits.call("peak_flops", threads=count), reads)
        roofline = Roofline(limits, threads)
        for size in settings.sizes:
            kernel.make("ours", **asdict(size))
            by_hand.make("numpy_by_hand", **asdict(size))
            checked = Checked(size, kernel.call("check"))
            yield checked
            if not checked.worst <= 1:
                raise SideError(f"a result of the kernel at {size} is {checked.worst:.2f} times its error bound away")
            if not agree(kernel.call("probe"), by_hand.call("probe")):
                raise SideError(f"the kernel and NumPy in a process of its own disagree at {size}")
            for part in PARTS:
                duel = Duel(*take_turns([kernel, by_hand], part, rounds=settings.rounds, seconds=settings.seconds))
                yield Timed(size, part, duel, *roofline.least(size.flops(part), size.nbytes(part)))


class Roofline:
    """The least time that work can take here: by the FLOP/s or the bandwidth measured in this run, whichever binds.

    Each limit is measured whenever it is asked for and only ever rises, since what a machine reached once it can.

    side     made by machine.limits
    threads  that the work may use
    """

    def __init__(self, side: Side, threads: int) -> None:
        self._side, self._threads = side, threads
        self._flops = 0.0
        self._reads: dict[int, float] = {}

    def peak_flops(self) -> float:
        """FLOP/s."""
        self._flops = max(self._flops, self._side.call("peak_flops", threads=self._threads))
        return self._flops

    def bandwidth(self, nbytes: int) -> float:
        """Bytes a second read from a buffer of so many bytes, which decide the cache that it lies in."""
        measured = self._side.call("read_bandwidth", nbytes=nbytes, threads=self._threads)
        self._reads[nbytes] = max(self._reads.get(nbytes, 0.0), measured)
        return self._reads[nbytes]

    def least(self, flops: float, nbytes: int) -> tuple[float, str]:
        """Return seconds and what binds, "FLOP/s" or "bandwidth"."""
        compute, stream = flops / self.peak_flops(), nbytes / self.bandwidth(nbytes)
        return (compute, "FLOP/s") if compute >= stream else (stream, "bandwidth")


def agree(ours: list[list[float]], theirs: list[list[float]], tolerance: float = 1e-4) -> bool:
    """Say whether two probes are equal up to ``tolerance`` of each result's largest element."""
    return all(
        abs(one - other) <= tolerance * mine[0]
        for mine, their in zip(ours, theirs, strict=True)
        for one, other in zip(mine, their, strict=True)
    )
