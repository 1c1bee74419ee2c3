"""What do(c, k) sets: which units of which concepts, to what values, at which tokens. Knows no models and no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.index.units import ConceptExperts, Expert
from expertmine.specs.choices import DEFAULT_K, Conflicts, Forcing, Tokens, Units


@dataclass(frozen=True, slots=True)
class Steering:
    """How the experts of a concept are set."""

    k: int = DEFAULT_K
    """Experts to set per concept; 0 sets none."""
    forcing: Forcing = "mean"
    """The value that units are set to, see `expertmine.specs.choices.Forcing`."""
    strength: float = 1.0
    """How far a unit moves from its own response towards that value: 0 not at all, 1 all the way."""
    tokens: Tokens = "all"
    layers: tuple[int, ...] | None = None
    """Only experts in these layers count; None for all layers."""
    block: int = 1
    """Which k experts: 1 for the best k, 2 for the next k, and so on."""
    conflicts: Conflicts = "best"

    def __post_init__(self) -> None:
        for name, words in (("forcing", Forcing), ("tokens", Tokens), ("conflicts", Conflicts)):
            if getattr(self, name) not in get_args(words):
                raise UserError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(get_args(words))}")
        if self.k < 0:
            raise UserError(f"k is {self.k}: expected at least 0")
        if self.block < 1:
            raise UserError(f"block is {self.block}: expected 1 for the best k experts, 2 for the next k, …")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}: expected 0 (nothing is changed) to 1 (set to the value)")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            raise UserError(f"layers is {list(self.layers)}: expected numbers from 0, or None for all layers")

    @property
    def manner(self) -> dict[str, Any]:
        """How units are set, independent of which units; in JSON types."""
        layers = None if self.layers is None else list(self.layers)
        return {"forcing": self.forcing, "strength": self.strength, "tokens": self.tokens, "layers": layers}


def usual_k(index: Experts, concepts: Sequence[str], steering: Steering, units: Units = "experts") -> tuple[int, bool]:
    """The default number of units to set, and whether an evaluation chose it; see `Experts.usual_k`.

    Args:
        steering: how units will be set; its k is ignored.
        units: which units of the concepts; evaluations choose k for experts only.

    Raises:
        UnknownConcept: a concept is not in the index.
    """
    evaluated = steering.block == 1 and units == "experts"
    return index.usual_k(concepts, steering.manner if evaluated else None)


Assignment = Mapping[str, Mapping[int, float]]
"""Values by hookpoint and channel."""


def chosen_experts(experts: ConceptExperts, steering: Steering) -> tuple[Expert, ...]:
    """The experts of one concept that will be set.

    Raises:
        UserError: the index does not have that many.
    """
    k, layers, block = steering.k, steering.layers, steering.block
    if layers is None and block == 1:
        return experts.top(k)
    among = [expert for expert in experts if layers is None or expert.layer in layers]
    if k * block > len(among):
        where = "" if layers is None else f" in layers {', '.join(map(str, layers))}"
        which = "" if block == 1 else f" and block is {block}"
        raise UserError(
            f"k is {k}{which}: {experts.concept!r} has {len(among)} experts{where} in this index, but {k * block} are "
            "needed; `expertmine reduce RUN --top-k K` keeps more"
        )
    return tuple(among[k * (block - 1) : k * block])


def assign(concepts: Sequence[ConceptExperts], steering: Steering) -> Assignment:
    """The values of all units to set, for one or several concepts.

    Raises:
        UserError: k out of range, or the run did not keep a unit's value.
    """
    candidates: dict[tuple[str, int], list[Expert]] = defaultdict(list)
    for concept in concepts:
        for expert in chosen_experts(concept, steering):
            if math.isnan(expert.forced(steering.forcing)):
                raise UserError(
                    f"unit {expert.unit} has no value to set for {concept.concept!r}: the run kept statistics for "
                    "some units only; mine with `--keep all`"
                )
            candidates[expert.hookpoint, expert.channel].append(expert)
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for (hookpoint, channel), experts in candidates.items():
        found[hookpoint][channel] = _resolve(experts, steering)
    return found


def _resolve(experts: Sequence[Expert], steering: Steering) -> float:
    """The value of a unit that is an expert of one or several concepts."""
    values = [expert.forced(steering.forcing) for expert in experts]
    match steering.conflicts:
        case "first":
            return values[0]
        case "mean":
            return math.fsum(values) / len(values)
        case "best":
            return values[max(range(len(experts)), key=lambda at: experts[at].ap)]
