"""One table of cases: tests hold each kernel against its oracle, and the benchmark times both on the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from sklearn.metrics import average_precision_score

from expertmine_kernels import ConceptRows, average_precision, expertise


def draw_responses(sentences: int, units: int, dtype: type, order: Literal["C", "F"] = "F") -> Any:
    """Draw responses (sentences, units), by default in unit-major memory, as the store's chunks are."""
    drawn = np.random.default_rng(0).standard_normal((units, sentences)).astype(dtype).T
    return np.array(drawn, order=order)


def draw_lists(count: int, positives: int, sentences: int, *, shared: bool) -> ConceptRows:
    """Draw concepts of random positives with 1,000 negatives each: the first sentences for all, or their own."""
    draws = np.random.default_rng(1)
    on, off = [], []
    for _ in range(count):
        rows = draws.permutation(np.arange(1000 if shared else 0, sentences))
        on.append(rows[:positives])
        off.append(np.arange(1000) if shared else rows[positives : positives + 1000])
    return ConceptRows.from_lists(on, off)


def draw_pool(count: int, positives: int, sentences: int, *, removed: int, pool: int) -> ConceptRows:
    """Draw concepts that remove from one pool, the first sentences, as many rows, all of them among the positives."""
    draws = np.random.default_rng(1)
    on, out = [], []
    for _ in range(count):
        out.append(draws.choice(pool, removed, replace=False))
        beyond = pool + draws.choice(max(sentences - pool, 1), positives - removed, replace=False)
        on.append(np.concatenate([out[-1], beyond]))
    return ConceptRows.from_pools(on, [np.arange(pool)], np.zeros(count, int), out)


def as_own_lists(rows: ConceptRows, count: int) -> ConceptRows:
    """Return the first concepts with their negatives written out, concept by concept."""
    first = range(count)
    return ConceptRows.from_lists([rows.positives(c) for c in first], [rows.negatives(c) for c in first])


def of_many_concepts(block: Any, rows: ConceptRows) -> Callable[[], Any]:
    """`expertise`, which computes five statistics beside average precision."""
    return lambda: expertise(block, rows).ap


def of_one_concept(block: Any, rows: ConceptRows) -> Callable[[], Any]:
    """`average_precision` of the first concept, whose rows must be all that there are."""
    labels = np.isin(np.arange(len(block)), rows.positives(0))
    return lambda: average_precision(block, labels)[None]


@dataclass(frozen=True, slots=True)
class KernelCase:
    """A kernel, arrays for it, and an oracle."""

    name: str
    dtype: type
    draw_rows: Callable[[int, int, int], ConceptRows]
    """Of so many concepts, positives and sentences."""
    positives: int
    concepts: int
    target: float
    """How many times faster than its oracle the kernel must be, per (concept, unit), on one thread."""
    sentences: int = 10_000
    units: int = 64
    order: Literal["C", "F"] = "F"
    kernel: Callable[[Any, ConceptRows], Callable[[], Any]] = of_many_concepts
    """Prepares a call; what that returns is (concepts, units)."""
    oracle: Callable[[Any, Any], float] = average_precision_score
    """Of labels and scores of one concept and one unit."""
    lists_target: float | None = None
    """How many times faster the kernel must be than itself on the same negatives written out concept by concept."""

    def draw(self, concepts: int, units: int) -> tuple[Any, ConceptRows]:
        """Responses (sentences, units), and the rows of so many concepts."""
        block = draw_responses(self.sentences, units, self.dtype, self.order)
        return block, self.draw_rows(concepts, self.positives, self.sentences)


OWN, SHARED = partial(draw_lists, shared=False), partial(draw_lists, shared=True)
LESS_20, ALL_OTHERS = partial(draw_pool, removed=20, pool=1000), partial(draw_pool, removed=200, pool=20_000)
ONE = {"concepts": 1, "sentences": 2000, "units": 1024, "kernel": of_one_concept}

CASES = (
    KernelCase("1,000 positives, 1,000 own negatives, float16", np.float16, OWN, 1000, 100, 80),
    KernelCase("200 positives, shared pool of 1,000, float16", np.float16, SHARED, 200, 1000, 600),
    KernelCase("1,000 positives, shared pool of 1,000, float16", np.float16, SHARED, 1000, 300, 170),
    KernelCase("1,000 positives, 1,000 own negatives, float32", np.float32, OWN, 1000, 100, 80),
    KernelCase("200 positives, shared pool of 1,000, float32", np.float32, SHARED, 200, 1000, 400),
    KernelCase("200 positives, pool of 1,000 less 20, float16", np.float16, LESS_20, 200, 1000, 400, lists_target=2),
    KernelCase("200 positives, pool of 1,000 less 20, float32", np.float32, LESS_20, 200, 1000, 350, lists_target=2),
    KernelCase(
        "200 positives, all 19,800 others, float16", np.float16, ALL_OTHERS, 200, 1000, 1500,
        sentences=20_000, lists_target=12,
    ),
    KernelCase(
        "200 positives, all 19,800 others, float32", np.float32, ALL_OTHERS, 200, 1000, 1000,
        sentences=20_000, lists_target=12,
    ),
    KernelCase("one concept of 1,000 + 1,000, unit-major float16", np.float16, OWN, 1000, target=80, **ONE),
    KernelCase("one concept, sentence-major float16", np.float16, OWN, 1000, target=55, **ONE, order="C"),
    KernelCase("one concept of 1,000 + 1,000, unit-major float32", np.float32, OWN, 1000, target=25, **ONE),
)  # fmt: skip
