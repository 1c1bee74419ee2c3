"""Intercepts the linear maps of single experts in mixture-of-experts modules that fuse all experts in 3-D parameters.

Such a module has no submodule per expert to hook. Its eager forward gathers the tokens routed to an expert and passes
them through `torch.nn.functional.linear` with a slice of a parameter; both calls are intercepted while the module
runs. Knows no hookpoint names: a map is a parameter's name and an expert's number.
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
"""A parameter of the experts module, and the expert whose slice of it the map uses."""

OnMap = Callable[[Map, torch.Tensor, torch.Tensor, int], torch.Tensor | None]
"""Takes a map, the tokens routed to its expert (routed,), the map's output for them (routed, channels), and the number
of all tokens; a tensor that it returns replaces the output."""

OnDone = Callable[[set[Map], int], None]
"""Takes the maps that ran, and the number of tokens that the module ran on."""


def is_fused(module: nn.Module) -> bool:
    """Return whether a module keeps its experts as 3-D parameters, however it computes with them."""
    # Convolutions and projections of state-space models have 3-D weights too, but no experts.
    return not isinstance(module, nn.modules.conv._ConvNd) and (
        "experts" in type(module).__name__.lower() and bool(_stacked(module))
    )


def is_readable(module: nn.Module) -> bool:
    """Return whether the experts' maps can be intercepted: the module routes by `top_k_index` and uses linear maps."""
    return (
        is_fused(module)
        and "top_k_index" in inspect.signature(type(module).forward).parameters
        and not getattr(module, "is_transposed", False)
    )


def expert_maps(module: nn.Module) -> list[Map]:
    """List every linear map of every expert, by expert, in the order in which an expert runs its maps."""
    stacked = _stacked(module)
    experts = len(next(iter(stacked.values())))
    return [(name, expert) for expert in range(experts) for name in stacked]


def map_width(module: nn.Module, parameter: str) -> int:
    """Return the output channels of a map; parameters are (experts, out, in)."""
    return int(_stacked(module)[parameter].shape[1])


def _stacked(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own 3-D parameters by name, (experts, out, in)."""
    return {name: parameter for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3}


class _Interceptor(TorchFunctionMode):
    """Sees which tokens a module gathers, and which slice of its parameters they then pass through."""

    def __init__(self, module: nn.Module, wanted: frozenset[str], on_map: OnMap) -> None:
        super().__init__()
        # Read at every run: a model split over devices may move its parameters between runs.
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
                    f"an experts module runs {found[0]}[{found[1]}] on {tuple(output.shape[:-1])} tokens, expected the "
                    "tokens gathered for that expert; leave the experts out of the hookpoints"
                )
            self.ran.add(found)
            changed = self.on_map(found, self.tokens, output, self.count)
            return output if changed is None else changed
        return output

    def _map_of(self, weight: torch.Tensor) -> Map | None:
        """Find the parameter and expert of a weight by its address in memory."""
        for name, stacked in self.slices.items():
            size = stacked.stride(0) * stacked.element_size()
            expert, rest = divmod(weight.data_ptr() - stacked.data_ptr(), size)
            if rest == 0 and 0 <= expert < len(stacked) and weight.shape == stacked.shape[1:]:
                return name, expert
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Subscriber:
    """The wanted parameters and the callbacks of one open context."""

    wanted: frozenset[str]
    on_map: OnMap
    on_done: OnDone


class _InterceptedForward:
    """Replaces an experts module's forward while contexts are open; a context sees the changes of earlier ones."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.original = module.forward
        self.is_own = "forward" in module.__dict__
        self.subscribers: list[_Subscriber] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as modes:
            interceptors = [
                (each, modes.enter_context(_Interceptor(self.module, each.wanted, each.on_map)))
                for each in self.subscribers
            ]
            output = self.original(*args, **kwargs)
        for subscriber, interceptor in interceptors:
            if not interceptor.ran:
                raise UserError(
                    f"{type(self.module).__name__} runs no linear map with a slice of "
                    f"{', '.join(sorted(subscriber.wanted))}; leave the experts out of the hookpoints"
                )
            subscriber.on_done(interceptor.ran, interceptor.count)
        return output

    def restore(self) -> None:
        if self.is_own:
            self.module.forward = self.original
        else:
            del self.module.forward


@contextmanager
def intercept_expert_maps(module: nn.Module, maps: Sequence[Map], on_map: OnMap, on_done: OnDone) -> Iterator[None]:
    """While open, call `on_map` at each run of a map to which a token is routed; the module runs eagerly.

    Args:
        maps: the wanted maps; `on_map` may also be called with other maps of the same parameters.
        on_done: called after each run of the module.

    Raises:
        UserError: in a forward pass, when the module does not compute by linear maps of gathered tokens.
    """
    subscriber = _Subscriber(frozenset(name for name, _ in maps), on_map, on_done)
    # The forward is wrapped, not hooked: the wrapper's contexts are closed even if the forward raises.
    forward = module.__dict__.get("forward")
    if not isinstance(forward, _InterceptedForward):
        forward = module.forward = _InterceptedForward(module)
    forward.subscribers.append(subscriber)
    try:
        with _eager(module):
            yield
    finally:
        forward.subscribers.remove(subscriber)
        if not forward.subscribers:
            forward.restore()


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """While open, the experts run one after another; grouped kernels do not run single experts' maps."""
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
