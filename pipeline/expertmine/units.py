"""Hookpoints and unit ids: which module outputs of a model are looked at, and how their channels are numbered.

Unit ids are contiguous: hookpoints in the order in which they run, channels in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from expertmine.errors import UserError
from expertmine.specs import Hookpoint

Recorder = Callable[[str, object], None]
"""Takes a hookpoint's name and its module's output."""


def default_names(model: PreTrainedModel) -> list[str]:
    """Every ``Linear`` and ``Conv1D`` inside the transformer blocks: no LM head, embeddings or norms."""
    blocks = tuple(f"{name}." for name in _block_lists(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(blocks)
    ]


def matching_names(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Modules whose path matches one of the glob patterns.

    Raises:
        UserError: a pattern matches nothing.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            leaves = [name for name, module in model.named_modules() if not list(module.children())]
            raise UserError(
                f"hookpoint pattern {pattern!r} matches no module; the model has {', '.join(leaves[:6])}, …"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def find_hookpoints(model: PreTrainedModel, patterns: Sequence[str] = ()) -> tuple[Hookpoint, ...]:
    """The model's hookpoints in execution order, found by running two tokens through it.

    Args:
        patterns: globs over module paths; none means `default_names`.

    Raises:
        UserError: nothing to hook, or a module that does not run exactly once with output (batch, tokens, channels)
            or (batch × tokens, channels).
    """
    names = matching_names(model, patterns) if patterns else default_names(model)
    if not names:
        raise UserError(f"{type(model).__name__} has no Linear or Conv1D inside transformer blocks; name hookpoints")
    widths: dict[str, int] = {}

    def record(name: str, output: object) -> None:
        if name in widths:
            raise UserError(f"hookpoint {name!r} runs more than once a pass; leave it out")
        # Some models (OPT) lay the tokens of a batch end to end for a part of their way.
        if not isinstance(output, torch.Tensor) or output.shape[:-1] not in {(1, 2), (2,)}:
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise UserError(f"hookpoint {name!r} gives {found}, expected a tensor (batch, tokens, channels)")
        widths[name] = output.shape[-1]

    with reading(model, names, record), torch.inference_mode():
        model.base_model(input_ids=torch.tensor([[1, 2]], device=model.device))
    if silent := [name for name in names if name not in widths]:
        raise UserError(f"hookpoint {silent[0]!r} does not run in a forward pass; leave it out")
    hookpoints: list[Hookpoint] = []
    first = 0
    for name, width in widths.items():
        hookpoints.append(Hookpoint(name, width, first))
        first += width
    return tuple(hookpoints)


class _Reader:
    """Forward hook that passes a module's output on under the hookpoint's name."""

    def __init__(self, name: str, record: Recorder) -> None:
        self.name = name
        self.record = record

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        self.record(self.name, output)


@contextmanager
def reading(model: nn.Module, names: Sequence[str], record: Recorder) -> Iterator[object]:
    """While open, `record(name, output)` is called whenever a named module has run."""
    handles = [model.get_submodule(name).register_forward_hook(_Reader(name, record)) for name in names]
    try:
        yield nullcontext
    finally:
        for handle in handles:
            handle.remove()


def _block_lists(model: PreTrainedModel) -> list[str]:
    """Paths of the lists that hold the transformer blocks: as many modules as the model has layers, all alike."""
    layers = getattr(model.config, "num_hidden_layers", None)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers and len({type(block) for block in module}) == 1
    ]
