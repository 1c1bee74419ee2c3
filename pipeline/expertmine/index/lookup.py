"""Questions to an expert index other than "which experts has this concept": by unit, by hookpoint, between concepts.

Works on the index alone, a row for each concept and rank, as arrays (concepts, rank); loops over neither. Where a
function takes `k`, only the k best experts of each concept count: all that the index holds unless it is given.
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
"""Shared experts that a rank correlation takes: of two it could be nothing but 1 or -1."""


@dataclass(frozen=True, slots=True)
class UnitAddress:
    """Where a unit is in the model."""

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
    """NaN where no labels were shuffled."""
    held_out_ap: float
    """NaN where there are no held-out sentences."""


@dataclass(frozen=True, slots=True)
class SharedUnit:
    """A unit that is an expert of several concepts."""

    unit: int
    hookpoint: str
    channel: int
    concepts: int
    """How many have it among their experts."""
    best_concept: str
    """That which ranks it highest; the first of the index where several do."""
    best_rank: int
    best_ap: float
    """Its average precision for that concept."""


@dataclass(frozen=True, slots=True)
class Presence:
    """How many of a concept's experts are at some hookpoints."""

    concept: str
    experts: int
    share: float
    """Of those that count."""
    best_rank: int
    best_unit: int
    best_ap: float


@dataclass(frozen=True, slots=True)
class AtHookpoints:
    """The experts at some hookpoints."""

    hookpoints: tuple[str, ...]
    """Those that matched, in the model's order."""
    units: int
    """That they have."""
    expert_units: int
    """Units among them that are experts of any concept."""
    pairs: int
    """(concept, expert) pairs there."""
    all_pairs: int
    """The same in the whole model."""
    model_units: int
    concepts: tuple[Presence, ...]
    """Those that have any there, most first."""

    @property
    def enrichment(self) -> float:
        """Pairs there by those that as many units have on average: above 1 where experts are dense."""
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
    """Two concepts by their k best experts."""

    concept: str
    other: str
    k: int
    shared: tuple[SharedExpert, ...]
    """Experts of both, by their rank for the first concept."""
    jaccard: float
    """Shared experts by the experts of either."""
    expected: float
    """Shared experts that two draws of k units by lot would have on average, k² / units."""
    rank_correlation: float
    """Spearman's, over the shared experts alone, each concept's ranks counted anew among them: 1 where both order them
    the same. NaN where fewer than three are shared."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A concept whose experts overlap with those of another."""

    concept: str
    shared: int
    jaccard: float


def k_or_all(experts: Experts, k: int | None) -> int:
    """How many experts of each concept count: `k`, or all that the index holds.

    Raises:
        UserError: the index does not hold that many.
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
    """The unit that a text names: its id, or its hookpoint and channel as ``transformer.h.4.mlp.c_fc:979``.

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
            f"{text!r} is no unit of {experts.model.name!r}; expected a unit id, or a hookpoint and a channel such as "
            f"{names[0]}:0{hint}"
        )
    if not (channel.isascii() and channel.isdecimal() and len(channel) < 16 and int(channel) < found["width"]):
        raise UserError(f"{name} has no channel {channel!r}; expected 0 to {found['width'] - 1}")
    return UnitAddress(found["first_unit"] + int(channel), name, int(channel))


def address_of(experts: Experts, unit: int) -> UnitAddress:
    """Where a unit that the model has is."""
    found = max(
        (hookpoint for hookpoint in experts.metadata["hookpoints"] if hookpoint["first_unit"] <= unit),
        key=lambda hookpoint: int(hookpoint["first_unit"]),
    )
    return UnitAddress(unit, found["name"], unit - found["first_unit"])


def concepts_of(experts: Experts, unit: int, k: int | None = None) -> list[Service]:
    """Every concept that has a unit among its experts, that which ranks it highest first.

    Raises:
        UserError: k out of range.
    """
    concepts, ranks = np.nonzero(expert_units(experts, k) == unit)
    rows = (concepts * experts.top_k + ranks)[np.argsort(ranks, kind="stable")]
    columns = ["concept", "group", "rank", "ap", "auroc", "p_value", "held_out_ap"]
    return [Service(**row) for row in experts.table.select(columns).take(rows).to_pylist()]


def most_shared(experts: Experts, count: int, k: int | None = None) -> list[SharedUnit]:
    """The units that serve most concepts; of units that serve equally many, the lower ids.

    Args:
        count: how many at most; units that serve one concept only are left out.

    Raises:
        UserError: k out of range.
    """
    units = expert_units(experts, k)
    found, first, served = np.unique(units.T, return_index=True, return_counts=True)
    # The first occurrence in the transpose is that of the best rank, and there of the first concept.
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
    """The experts at hookpoints, and which concepts have most of theirs there.

    Args:
        pattern: a hookpoint's exact name, or a glob over names such as ``transformer.h.3.*``.

    Raises:
        UserError: it matches nothing, or k is out of range.
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
    """How alike two concepts are by their k best experts.

    Raises:
        UnknownConcept: there is none of a name.
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
    """Spearman's correlation of distinct ranks with the order in which they stand; NaN for fewer than three."""
    count = len(ranks)
    if count < MIN_SHARED:
        return math.nan
    distances = np.argsort(np.argsort(ranks)) - np.arange(count)
    return float(1 - 6 * (distances**2).sum() / (count * (count * count - 1)))


def nearest(experts: Experts, concept: str, count: int, k: int | None = None) -> list[Neighbour]:
    """The concepts that share most experts with one, most first; those that share none are left out.

    Args:
        count: how many at most.

    Raises:
        UnknownConcept: there is none of that name.
        UserError: k out of range.
    """
    experts.concept_metadata(concept)  # refuses one that is not there
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
