"""The cost of steering: generation with 500 experts set, compared with unsteered generation in the same rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from expertmine import steer
from expertmine.index.units import ConceptExperts, Expert
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.load import LoadedModel, load_model

K = 500
NEW_TOKENS = 60
ROUNDS = 15
TARGETS = {1: 1.15, 16: 1.05, 100: 1.05}
"""Maximum ratio of times, by rows. For a single row a token takes 4 ms; calling an empty hook at each of the 24
hookpoints takes 2 to 3 % of that, and entering the context once another 1 %."""


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("embedded", device="cpu")


def spread_experts(loaded: LoadedModel) -> ConceptExperts:
    """Experts in every hookpoint of the model; the choice of units and values does not affect the time."""
    hookpoints = find_hookpoints(loaded.model)
    generator = torch.Generator().manual_seed(0)
    units = torch.randperm(hookpoints[-1].units.stop, generator=generator)[:K].tolist()
    found = []
    for rank, unit in enumerate(units, start=1):
        hookpoint = next(each for each in hookpoints if unit in each.units)
        channel = unit - hookpoint.first_unit
        found.append(Expert(rank, unit, hookpoint.name, channel, *[1.0] * 6, 0.1, 0.1, 0.1, 0.0))
    return ConceptExperts("anything", "", loaded.identity, tuple(found))


@pytest.mark.parametrize("rows", TARGETS)
def test_steering_costs_little(loaded: LoadedModel, rows: int) -> None:
    experts = spread_experts(loaded)
    prompt = torch.zeros(rows, 1, dtype=torch.long)

    def generate() -> None:
        loaded.model.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=10,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=0,
        )

    def seconds(action: Callable[[], None]) -> float:
        begin = time.perf_counter()
        action()
        return time.perf_counter() - begin

    def steered() -> None:
        with steer(loaded.model, experts, K):
            generate()

    seconds(generate), seconds(steered)
    plain, ratios = [], []
    for _ in range(ROUNDS):
        plain.append(seconds(generate))
        ratios.append(seconds(steered) / plain[-1])
    ratio = statistics.median(ratios)
    tokens = rows * NEW_TOKENS / statistics.median(plain)
    print(f"\n{rows} rows: {tokens:,.0f} tokens/s unsteered; {K} experts set take {ratio:.3f} times as long")
    assert ratio <= TARGETS[rows]
