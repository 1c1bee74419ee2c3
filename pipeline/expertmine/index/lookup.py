"""Looks up an expert index by unit, by hookpoint, and between concepts.

Works on the index alone, as arrays (concepts, rank), without Python loops over either. Where a function takes `k`, only
the k best experts per concept count; by default all that the index has.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.index.units import require_k

MIN_SHARED = 3
"""Shared experts that a rank correlation needs: with two it could only be 1 or -1."""


@dataclass(frozen=True, slots=True)
class UnitAddress:
    """A unit by its hookpoint and channel."""

    unit: int
    hookpoint: str
    channel: int


@dataclass(frozen=True, slots=True)
class Service:
    """A concept that has a unit among its experts."""

    concept: str
    group: str
    rank: int
    ap: float
    auroc: float
    p_value: float
    """NaN if no labels were shuffled."""
    held_out_ap: float
    """NaN if there are no held-out sentences."""


@dataclass(frozen=True, slots=True)
class SharedUnit:
    """A unit that is an expert of several concepts."""

    unit: int
    hookpoint: str
    channel: int
    concepts: int
    """Concepts that have it among their experts."""
    best_concept: str
    """The concept that ranks it highest; the first in the index if several do."""
    best_rank: int
    best_ap: float
    """Its average precision for that concept."""


@dataclass(frozen=True, slots=True)
class Presence:
    """A concept's experts at the matched hookpoints."""

    concept: str
    experts: int
    share: float
    """Share of the concept's k experts."""
    best_rank: int
    best_unit: int
    best_ap: float


@dataclass(frozen=True, slots=True)
class AtHookpoints:
    """The experts at the matched hookpoints."""

    hookpoints: tuple[str, ...]
    """The matched hookpoints, in the model's order."""
    units: int
    """Units at these hookpoints."""
    expert_units: int
    """Units among them that are experts of any concept."""
    pairs: int
    """(concept, expert) pairs at these hookpoints."""
    all_pairs: int
    """(concept, expert) pairs in the whole model."""
    model_units: int
    concepts: tuple[Presence, ...]
    """Concepts with experts at these hookpoints, most experts first."""

    @property
    def enrichment(self) -> float:
        """Density of pairs at these hookpoints relative to the whole model: above 1 where experts are dense."""
        return self.pairs / self.all_pairs / (self.units / self.model_units)


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """A unit that is an expert of two concepts."""

    unit: int
    hookpoint: str
    channel: int
    rank: int
    ap: float
    other_rank: int
    other_ap: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two concepts compared by their k best experts."""

    concept: str
    other: str
    k: int
    shared: tuple[SharedExpert, ...]
    """Experts of both, by their rank for the first concept."""
    jaccard: float
    """Shared experts divided by the experts of either."""
    expected: float
    """Mean number of shared experts of two random draws of k units, k² / units."""
    rank_correlation: float
    """Spearman's, over the shared experts alone, ranked among themselves for each concept: 1 if both concepts order
    them the same. NaN if fewer than three are shared."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A concept that shares experts with another."""

    concept: str
    shared: int
    jaccard: float


def k_or_all(experts: Experts, k: int | None) -> int:
    """How many experts per concept count: `k`, or all that the index has.

    Raises:
        UserError: the index does not have that many.
    """
    if k is None:
        return experts.top_k
    require_k(k, experts.top_k, least=1)
    return k


def expert_units(experts: Experts, k: int | None = None) -> NDArray[np.int64]:
    """(concepts, k) unit ids, concepts in the index's order, the best unit first.

    Raises:
        UserError: k out of range.
    """
    units: NDArray[np.int64] = experts.table["unit"].to_numpy().reshape(-1, experts.top_k)
    return units[:, : k_or_all(experts, k)]


def find_unit(experts: Experts, text: str) -> UnitAddress:
    """The unit named by an id, or by hookpoint and channel as in ``transformer.h.4.mlp.c_fc:979``.

    Raises:
        UserError: the model has no such unit.
    """
    hookpoints, units = experts.metadata["hookpoints"], experts.metadata["units"]
    if text.isascii() and text.isdecimal():
        unit = int(text) if len(text) <= len(str(units)) else units
        if unit >= units:
            raise UserError(f"there is no unit {text}; expected 0 to {units - 1}, the units of {experts.model.name!r}")
        return address_of(experts, unit)
    name, colon, channel = text.rpartition(":")
    found = next((hookpoint for hookpoint in hookpoints if hookpoint["name"] == name), None)
    if not colon or found is None:
        names = [hookpoint["name"] for hookpoint in hookpoints]
        near = difflib.get_close_matches(name or text, names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(f'{each}:0' for each in near)}?" if near else ""
        raise UserError(
            f"{text!r} is not a unit of {experts.model.name!r}; expected a unit id, or a hookpoint and a channel such "
            f"as {names[0]}:0{hint}"
        )
    if not (channel.isascii() and channel.isdecimal() and len(channel) < 16 and int(channel) < found["width"]):
        raise UserError(f"{name} has no channel {channel!r}; expected 0 to {found['width'] - 1}")
    return UnitAddress(found["first_unit"] + int(channel), name, int(channel))


def address_of(experts: Experts, unit: int) -> UnitAddress:
    """The address of a unit id that is in the model."""
    found = max(
        (hookpoint for hookpoint in experts.metadata["hookpoints"] if hookpoint["first_unit"] <= unit),
        key=lambda hookpoint: int(hookpoint["first_unit"]),
    )
    return UnitAddress(unit, found["name"], unit - found["first_unit"])


def concepts_of(experts: Experts, unit: int, k: int | None = None) -> list[Service]:
    """Every concept that has a unit among its experts; the one that ranks it highest comes first.

    Raises:
        UserError: k out of range.
    """
    concepts, ranks = np.nonzero(expert_units(experts, k) == unit)
    rows = (concepts * experts.top_k + ranks)[np.argsort(ranks, kind="stable")]
    columns = ["concept", "group", "rank", "ap", "auroc", "p_value", "held_out_ap"]
    return [Service(**row) for row in experts.table.select(columns).take(rows).to_pylist()]


def most_shared(experts: Experts, count: int, k: int | None = None) -> list[SharedUnit]:
    """The units that are experts of the most concepts; ties go to the lower ids.

    Args:
        count: maximum number of units; experts of only one concept are left out.

    Raises:
        UserError: k out of range.
    """
    units = expert_units(experts, k)
    found, first, served = np.unique(units.T, return_index=True, return_counts=True)
    # The transpose is ordered by rank, then by concept, so the first occurrence has the best rank.
    best_rank, best_concept = np.divmod(first, len(units))
    order = np.argsort(-served, kind="stable")[:count]
    order = order[served[order] > 1]
    names, aps = list(experts), experts.table["ap"].to_numpy()
    return [
        SharedUnit(
            **asdict(address_of(experts, int(found[at]))),
            concepts=int(served[at]),
            best_concept=names[best_concept[at]],
            best_rank=int(best_rank[at]) + 1,
            best_ap=float(aps[best_concept[at] * experts.top_k + best_rank[at]]),
        )
        for at in order.tolist()
    ]


def at_hookpoints(experts: Experts, pattern: str, k: int | None = None) -> AtHookpoints:
    """The experts at matching hookpoints, and the concepts with the most experts there.

    Args:
        pattern: a hookpoint's exact name, or a glob over names such as ``transformer.h.3.*``.

    Raises:
        UserError: the pattern matches nothing, or k is out of range.
    """
    hookpoints = experts.metadata["hookpoints"]
    exact = [hookpoint for hookpoint in hookpoints if hookpoint["name"] == pattern]
    matched = exact or [hookpoint for hookpoint in hookpoints if fnmatchcase(hookpoint["name"], pattern)]
    if not matched:
        names = [hookpoint["name"] for hookpoint in hookpoints]
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.5) or names[:1]
        raise UserError(
            f"{pattern!r} matches none of the {len(names)} hookpoints of {experts.model.name!r}, such as "
            f"{', '.join(near)}"
        )
    here = np.zeros(experts.metadata["units"], np.bool_)
    for hookpoint in matched:
        here[hookpoint["first_unit"] : hookpoint["first_unit"] + hookpoint["width"]] = True
    units = expert_units(experts, k)
    among = here[units]
    counts = among.sum(axis=1)
    best = among.argmax(axis=1)
    names, aps = list(experts), experts.table["ap"].to_numpy().reshape(-1, experts.top_k)
    return AtHookpoints(
        hookpoints=tuple(hookpoint["name"] for hookpoint in matched),
        units=int(here.sum()),
        expert_units=len(np.unique(units[among])),
        pairs=int(counts.sum()),
        all_pairs=units.size,
        model_units=len(here),
        concepts=tuple(
            Presence(
                concept=names[at],
                experts=int(counts[at]),
                share=float(counts[at] / units.shape[1]),
                best_rank=int(best[at]) + 1,
                best_unit=int(units[at, best[at]]),
                best_ap=float(aps[at, best[at]]),
            )
            for at in np.argsort(-counts, kind="stable").tolist()
            if counts[at]
        ),
    )


def compare(experts: Experts, concept: str, other: str, k: int | None = None) -> Comparison:
    """Compare two concepts by their k best experts.

    Raises:
        UnknownConcept: a concept is not in the index.
        UserError: k out of range.
    """
    k = k_or_all(experts, k)
    one, two = experts[concept].top(k), {expert.unit: expert for expert in experts[other].top(k)}
    shared = tuple(
        SharedExpert(
            expert.unit, expert.hookpoint, expert.channel, expert.rank, expert.ap, two[expert.unit].rank,
            two[expert.unit].ap,
        )
        for expert in one
        if expert.unit in two
    )  # fmt: skip
    return Comparison(
        concept=concept,
        other=other,
        k=k,
        shared=shared,
        jaccard=len(shared) / (2 * k - len(shared)),
        expected=k * k / experts.metadata["units"],
        rank_correlation=_spearman([expert.other_rank for expert in shared]),
    )


def _spearman(ranks: Sequence[int]) -> float:
    """Spearman's correlation of distinct ranks with their positions in the sequence; NaN for fewer than three."""
    count = len(ranks)
    if count < MIN_SHARED:
        return math.nan
    distances = np.argsort(np.argsort(ranks)) - np.arange(count)
    return float(1 - 6 * (distances**2).sum() / (count * (count * count - 1)))


def nearest(experts: Experts, concept: str, count: int, k: int | None = None) -> list[Neighbour]:
    """The concepts that share the most experts with one, most first; concepts that share none are left out.

    Args:
        count: maximum number of concepts.

    Raises:
        UnknownConcept: there is no concept of that name.
        UserError: k out of range.
    """
    experts.concept_metadata(concept)  # raises UnknownConcept
    units, names = expert_units(experts, k), list(experts)
    own = np.zeros(experts.metadata["units"], np.bool_)
    own[units[names.index(concept)]] = True
    shared = own[units].sum(axis=1)
    shared[names.index(concept)] = 0
    return [
        Neighbour(names[at], int(shared[at]), float(shared[at] / (2 * units.shape[1] - shared[at])))
        for at in np.argsort(-shared, kind="stable")[:count].tolist()
        if shared[at]
    ]
