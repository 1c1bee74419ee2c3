"""The units of a concept in an index, one table row each, best first. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from expertmine.errors import UserError
from expertmine.specs.choices import Forcing
from expertmine.specs.hookpoints import layer_of
from expertmine.specs.identity import ModelIdentity

SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("group", pa.string()),
        ("rank", pa.int32()),
        ("unit", pa.int64()),
        ("hookpoint", pa.string()),
        ("channel", pa.int32()),
        ("ap", pa.float64()),
        ("auroc", pa.float64()),
        ("p_value", pa.float64()),
        ("held_out_ap", pa.float64()),
        ("held_out_low", pa.float64()),
        ("held_out_high", pa.float64()),
        ("on_mean", pa.float32()),
        ("on_p50", pa.float32()),
        ("on_p90", pa.float32()),
        ("off_mean", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Expert:
    """One expert unit of a concept."""

    rank: int
    """From 1, for the highest average precision."""
    unit: int
    hookpoint: str
    channel: int
    ap: float
    """Average precision on the mined sentences."""
    auroc: float
    p_value: float
    """Probability that the best of all units does as well under shuffled labels; NaN if no labels were shuffled."""
    held_out_ap: float
    """Average precision on sentences that mining did not see; NaN if there are none."""
    held_out_low: float
    """Lower end of the 95 % bootstrap interval of `held_out_ap`; NaN if it was not assessed."""
    held_out_high: float
    on_mean: float
    """Mean response to the mined positives."""
    on_p50: float
    on_p90: float
    off_mean: float
    """Mean response to the mined negatives."""

    @property
    def layer(self) -> int | None:
        """Its layer in the model; None for a hookpoint outside of the layers."""
        return layer_of(self.hookpoint)

    def forced(self, forcing: Forcing) -> float:
        """The value that do(c, k) sets this unit to."""
        match forcing:
            case "mean":
                return self.on_mean
            case "p50":
                return self.on_p50
            case "p90":
                return self.on_p90
            case "zero":
                return 0.0


@dataclass(frozen=True)
class ConceptExperts(Sequence[Expert]):
    """The experts of one concept, best first, and the model they belong to."""

    concept: str
    description: str
    model: ModelIdentity
    experts: tuple[Expert, ...]

    def __len__(self) -> int:
        return len(self.experts)

    def __getitem__(self, at: Any) -> Any:
        return self.experts[at]

    def top(self, k: int) -> tuple[Expert, ...]:
        """The k best experts.

        Raises:
            UserError: the index does not have that many.
        """
        require_k(k, len(self.experts))
        return self.experts[:k]


def require_k(k: int, held: int, least: int = 0) -> None:
    """Check a requested number of experts per concept.

    Args:
        held: experts per concept in the index.
        least: the smallest k allowed.

    Raises:
        UserError: k is out of range.
    """
    if not least <= k <= held:
        raise UserError(
            f"k is {k}: expected {least} to {held}, the number of experts per concept in this index; "
            "`expertmine reduce RUN --top-k K` keeps more"
        )
