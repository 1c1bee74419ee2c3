"""A description of a cluster: GPUs, CPUs, and the bandwidth of the store. Knows no job.

Parsed from one line, ``gpus=64,cpus=512,store-bandwidth=10GB/s``; other values have defaults, which are printed as
assumptions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

from expertmine.errors import UserError
from expertmine.specs.settings import Autocast, WeightsType

A100_BFLOAT16, A100_FLOAT32 = 312e12, 19.5e12
"""Peak operations per second of an A100 by NVIDIA's data sheet: dense bfloat16 on tensor cores, and float32."""

EXAMPLE = "gpus=64,cpus=512,store-bandwidth=10GB/s"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The cluster that a job would run on."""

    gpus: int = 0
    """0 extracts on CPUs."""
    cpus: int = 1
    """Cores; a scoring process uses one."""
    store_bandwidth: float = 1e9
    """Bytes per second that all machines together read from or write to the store."""
    gpu_memory: float = 80e9
    """Bytes per GPU."""
    gpu_flops: float | None = None
    """Peak operations per second of one GPU in the job's precision; None for an A100's."""
    utilisation: float = 0.4
    """Share of the peak that a forward pass reaches."""
    gpus_each: float = 1.0
    """GPUs per extracting process; with a fraction, several processes share one GPU."""
    cpu_memory: float = 4e9
    """Bytes per core."""
    latency: float = 0.001
    """Seconds from a read request to its first byte, or from the end of a write to its confirmation."""

    def peak(self, autocast: Autocast, weights: WeightsType) -> float:
        """Peak operations per second of one GPU."""
        if self.gpu_flops is not None:
            return self.gpu_flops
        return A100_FLOAT32 if autocast == "none" and weights == "float32" else A100_BFLOAT16

    @property
    def extractors(self) -> int:
        """Number of extracting processes, each with at least one core; without GPUs, one per core."""
        if not self.gpus:
            return self.cpus
        on_gpus = self.gpus * int(1 / self.gpus_each) if self.gpus_each <= 1 else self.gpus // int(self.gpus_each)
        return min(self.cpus, on_gpus)

    @property
    def forward_passes(self) -> int:
        """Number of extracting processes that compute at the same time; processes on one GPU take turns."""
        return min(self.extractors, self.gpus) if self.gpus else self.cpus


def parse_cluster(text: str) -> Hardware:
    """Parse hardware from text such as ``gpus=64,cpus=512,store-bandwidth=10GB/s``.

    Raises:
        UserError: an unknown or repeated name, or a value that is invalid or out of range.
    """
    given: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, equals, value = (each.strip() for each in part.partition("="))
        field = name.replace("-", "_")
        if field not in _PARSERS:
            near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"expected {', '.join(NAMES)}"
            raise UserError(f"--cluster: {name!r} is not a property of a cluster; {hint}")
        if field in given:
            raise UserError(f"--cluster: {name} is given twice; give it once")
        parse, expected = _PARSERS[field]
        found = parse(value) if equals else None
        if found is None:
            raise UserError(f"--cluster: {name} is {value!r}; expected {expected}")
        given[field] = found
    for needed in ("cpus", "store_bandwidth"):
        if needed not in given:
            raise UserError(f"--cluster: {needed.replace('_', '-')} is missing; expected something like {EXAMPLE}")
    hardware = Hardware(**given)
    if hardware.extractors < 1:
        raise UserError(
            f"--cluster: gpus-each is {hardware.gpus_each:g} and gpus is {hardware.gpus}; expected gpus-each to be at "
            "most gpus"
        )
    return hardware


def assumed(hardware: Hardware) -> tuple[str, ...]:
    """Names of the values at their defaults, as `--cluster` spells them."""
    default = asdict(Hardware())
    return tuple(
        name.replace("_", "-")
        for name, value in asdict(hardware).items()
        if name not in ("gpus", "cpus", "store_bandwidth") and value == default[name]
    )


_NUMBER = r"(\d+(?:\.\d+)?(?:[eE]\d+)?)"
_PREFIXES = ("", "k", "M", "G", "T", "P")


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _at_least_one(text: str) -> int | None:
    return _count(text) or None


def _prefixed(text: str, unit: str) -> float | None:
    """A number above 0 with an optional unit and prefix: powers of 1,000, or of 1,024 with an i."""
    found = re.fullmatch(rf"{_NUMBER}\s*([kMGTP]?)(i?)(?:{unit})?", text)
    if not found or (found[3] and not found[2]):
        return None
    return float(found[1]) * (1024.0 if found[3] else 1000.0) ** _PREFIXES.index(found[2]) or None


def _bytes(text: str) -> float | None:
    return _prefixed(text, "B")


def _bytes_per_second(text: str) -> float | None:
    bits = _prefixed(text, "(?:bit|b)/s") if re.search("(?:bit|b)/s$", text) else None
    return bits / 8 if bits else _prefixed(text, "B(?:/s)?")


def _operations(text: str) -> float | None:
    return _prefixed(text, "(?:FLOPS|FLOP/s|flops)")


def _fraction(text: str) -> float | None:
    found = re.fullmatch(rf"{_NUMBER}(%?)", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    return value if 0 < value <= 1 else None


def _gpus_each(text: str) -> float | None:
    found = re.fullmatch(_NUMBER, text)
    value = float(found[1]) if found else 0.0
    return value if 0 < value <= 1 or (value > 1 and value == int(value)) else None


def _seconds(text: str) -> float | None:
    found = re.fullmatch(rf"{_NUMBER}\s*(us|µs|ms|s)", text)
    return float(found[1]) * {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]] if found else None


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "gpus": (_count, "a number of GPUs, 0 to extract on CPUs"),
    "cpus": (_at_least_one, "a number of cores"),
    "store_bandwidth": (_bytes_per_second, "bytes per second such as 10GB/s, or bits such as 100Gbit/s"),
    "gpu_memory": (_bytes, "bytes per GPU such as 80GB"),
    "gpu_flops": (_operations, "peak operations per second of one GPU such as 312TFLOPS"),
    "utilisation": (_fraction, "the share of a GPU's peak that a forward pass reaches, such as 0.4 or 40%"),
    "gpus_each": (_gpus_each, "GPUs per extracting process: a fraction such as 0.5, or a whole number"),
    "cpu_memory": (_bytes, "bytes per core such as 4GB"),
    "latency": (_seconds, "the time of a request to the store, such as 20ms"),
}
NAMES = tuple(field.name.replace("_", "-") for field in fields(Hardware))
