"""Interventions on a model as context managers; do(c, k) of Suau et al. (2022), section 3.

Works on any Hugging Face model of the mined weights, with `generate`, caches and batches. Knows no run folder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from expertmine.experts import ConceptExperts, Forcing
from expertmine.models import check_weights


class _Overwrite:
    """Forward hook that sets chosen channels of a module's output to fixed values, at every token position."""

    def __init__(self, channels: list[int], values: list[float]) -> None:
        self.channels = torch.tensor(channels)
        self.values = torch.tensor(values)

    def __call__(self, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        """Output (…, channels) with the chosen ones replaced; the original stays as it is."""
        changed = output.clone()
        changed[..., self.channels.to(output.device)] = self.values.to(output)
        return changed


@contextmanager
def steer(
    model: PreTrainedModel, experts: ConceptExperts, k: int, forcing: Forcing = "mean", check: bool = True
) -> Iterator[None]:
    """While open, the concept's k best experts are set to their forcing values: do(c, k).

    The hooks are removed on leaving, also after an exception, and the model's outputs are those from before.

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
    with ExitStack() as hooks:
        for name in channels:
            hook = _Overwrite(channels[name], values[name])
            hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)
        yield
