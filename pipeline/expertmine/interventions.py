"""Interventions on a model as context managers; do(c, k) of Suau et al. (2022), section 3.

Works on any Hugging Face model of the mined weights, with `generate`, caches and batches. Knows no run folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from expertmine.experts import ConceptExperts, Forcing
from expertmine.models import check_weights
from expertmine.taps import changing


class _Overwrite:
    """Sets chosen channels of a hookpoint's response to fixed values, at every token that it is given."""

    def __init__(self, channels: list[int], values: list[float]) -> None:
        self.channels = torch.tensor(channels)
        self.values = torch.tensor(values)

    def __call__(self, response: torch.Tensor) -> torch.Tensor:
        """Response (…, channels) with the chosen ones replaced; the original stays as it is."""
        changed = response.clone()
        changed[..., self.channels.to(response.device)] = self.values.to(response)
        return changed


@contextmanager
def steer(
    model: PreTrainedModel, experts: ConceptExperts, k: int, forcing: Forcing = "mean", check: bool = True
) -> Iterator[None]:
    """While open, the concept's k best experts are set to their forcing values: do(c, k).

    An expert of a mixture is set at the tokens routed to it; a module that runs several times a pass, at the run that
    the unit belongs to. The hooks are removed on leaving, also after an exception, and the model's outputs are those
    from before.

    Args:
        k: how many experts; 0 changes nothing.
        forcing: which value, see `expertmine.experts.Forcing`.
        check: compare the model's weights with those that were mined.

    Raises:
        UserError: another model, or k out of range.
    """
    if check:
        check_weights(model, experts.model)
    channels: dict[str, list[int]] = defaultdict(list)
    values: dict[str, list[float]] = defaultdict(list)
    for expert in experts.top(k):
        channels[expert.hookpoint].append(expert.channel)
        values[expert.hookpoint].append(expert.forced(forcing))
    with changing(model, {name: _Overwrite(channels[name], values[name]) for name in channels}):
        yield
