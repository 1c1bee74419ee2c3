"""Mixture-of-experts modules that keep all experts as 3-D parameters, and the linear maps of each expert in them.

Such a module has no submodule an expert to hook. Its eager forward gathers the tokens routed to an expert and passes
them through `torch.nn.functional.linear` with a slice of a parameter; both are seen here while the module runs. Knows
no hookpoint names: a map is a parameter's name and an expert's number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from expertmine.errors import UserError

Map = tuple[str, int]
"""A parameter of the experts module, and the expert whose slice of it is meant."""

OnMap = Callable[[Map, torch.Tensor, torch.Tensor, int], torch.Tensor | None]
"""Takes a map, the tokens routed to its expert (routed,), what it gives for them (routed, channels), and how many
tokens there are; what it returns, if anything, takes the place of what the map gives."""

OnDone = Callable[[set[Map], int], None]
"""Takes the maps that ran, and how many tokens the module ran on."""


def is_fused(module: nn.Module) -> bool:
    """Whether the module keeps its experts as 3-D parameters, in whatever way it computes with them."""
    # Convolutions and projections of state-space models have 3-D weights too, and no experts.
    return not isinstance(module, nn.modules.conv._ConvNd) and (
        "experts" in type(module).__name__.lower() and bool(_stacked(module))
    )


def is_readable(module: nn.Module) -> bool:
    """Whether the experts' maps can be seen: those that route by `top_k_index` and compute by plain linear maps."""
    return (
        is_fused(module)
        and "top_k_index" in inspect.signature(type(module).forward).parameters
        and not getattr(module, "is_transposed", False)
    )


def expert_maps(module: nn.Module) -> list[Map]:
    """Every linear map of every expert, expert by expert, in the order in which one expert runs its maps."""
    stacked = _stacked(module)
    experts = len(next(iter(stacked.values())))
    return [(name, expert) for expert in range(experts) for name in stacked]


def map_width(module: nn.Module, parameter: str) -> int:
    """Channels of a map: (experts, out, in) is the layout of the parameters."""
    return int(_stacked(module)[parameter].shape[1])


def _stacked(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's own 3-D parameters, (experts, out, in)."""
    return {name: parameter for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3}


class _Watch(TorchFunctionMode):
    """Sees which tokens a module gathers, and which slice of its parameters they then pass through."""

    def __init__(self, module: nn.Module, wanted: frozenset[str], on_map: OnMap) -> None:
        super().__init__()
        # Read at every run: a model spread over devices may put its parameters elsewhere for each.
        self.slices = {name: weight for name, weight in _stacked(module).items() if name in wanted}
        self.on_map = on_map
        self.tokens: torch.Tensor | None = None
        self.count = 0
        self.ran: set[Map] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.Tensor.__getitem__:
            state, chosen = args
            if isinstance(chosen, torch.Tensor) and chosen.ndim == 1 and chosen.dtype == torch.int64:
                self.tokens, self.count = chosen, len(state)
        elif func is nn.functional.linear and (found := self._map_of(args[1])) is not None:
            if self.tokens is None or self.tokens.shape != output.shape[:-1]:
                raise UserError(
                    f"an experts module runs {found[0]}[{found[1]}] on {tuple(output.shape[:-1])} tokens, not those "
                    "that it gathered for that expert; leave the experts out of the hookpoints"
                )
            self.ran.add(found)
            changed = self.on_map(found, self.tokens, output, self.count)
            return output if changed is None else changed
        return output

    def _map_of(self, weight: torch.Tensor) -> Map | None:
        """Which slice of which parameter a weight is, by where it lies in memory."""
        for name, stacked in self.slices.items():
            size = stacked.stride(0) * stacked.element_size()
            expert, rest = divmod(weight.data_ptr() - stacked.data_ptr(), size)
            if rest == 0 and 0 <= expert < len(stacked) and weight.shape == stacked.shape[1:]:
                return name, expert
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Watcher:
    """What one open context wants to see."""

    wanted: frozenset[str]
    on_map: OnMap
    on_done: OnDone


class _WatchedForward:
    """Stands for an experts module's forward while contexts watch it; the one opened last sees what others change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original = module.forward
        self.is_own = "forward" in module.__dict__
        self.watchers: list[_Watcher] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as modes:
            watches = [
                (each, modes.enter_context(_Watch(self.module, each.wanted, each.on_map))) for each in self.watchers
            ]
            output = self.original(*args, **kwargs)
        for watcher, watch in watches:
            if not watch.ran:
                raise UserError(
                    f"{type(self.module).__name__} runs no linear map with a slice of "
                    f"{', '.join(sorted(watcher.wanted))}; leave the experts out of the hookpoints"
                )
            watcher.on_done(watch.ran, watch.count)
        return output

    def restore(self) -> None:
        if self.is_own:
            self.module.forward = self.original
        else:
            del self.module.forward


@contextmanager
def intercept_expert_maps(module: nn.Module, maps: Sequence[Map], on_map: OnMap, on_done: OnDone) -> Iterator[None]:
    """While open, `on_map` is called at each run of a map that some token is routed to, and the module runs eagerly.

    Args:
        maps: those wanted; `on_map` may be called with others of the same parameters.
        on_done: called whenever the module has run.

    Raises:
        UserError: in a forward pass, when the module computes in another way than by linear maps of gathered tokens.
    """
    watcher = _Watcher(frozenset(name for name, _ in maps), on_map, on_done)
    # The class's forward is wrapped, not hooked: what is entered there is left whatever the forward raises.
    forward = module.__dict__.get("forward")
    if not isinstance(forward, _WatchedForward):
        forward = module.forward = _WatchedForward(module)
    forward.watchers.append(watcher)
    try:
        with _eager(module):
            yield
    finally:
        forward.watchers.remove(watcher)
        if not forward.watchers:
            forward.restore()


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """While open, the experts run one after another; grouped kernels show no map of one expert."""
    config: Any = getattr(module, "config", None)
    chosen = getattr(config, "_experts_implementation_internal", None)
    if chosen is None or chosen == "eager":
        yield
        return
    config._experts_implementation_internal = "eager"
    try:
        yield
    finally:
        config._experts_implementation_internal = chosen
