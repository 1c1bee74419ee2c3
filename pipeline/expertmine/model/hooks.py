"""Hooks at hookpoints, as contexts: read their responses, or replace them.

Defines the names of hookpoints: ``path`` is a module's output; ``path#2`` the output of its second run in a pass;
``path.parameter[3]`` the linear map of expert 3 in a module of fused experts. Knows no units and no pooling.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from expertmine.errors import UserError
from expertmine.model.fused_experts import Map, intercept_expert_maps

Recorder = Callable[[str, torch.Tensor], None]
"""Takes a hookpoint's name and response: (batch, tokens, channels) or (batch × tokens, channels)."""

Change = Callable[[torch.Tensor, "Where"], torch.Tensor]
"""Takes a response and its tokens; returns it with some channels changed. It may change its argument in place only if
`Where.owned`."""

_NAME = re.compile(r"(?P<path>.+?)(?:\[(?P<expert>\d+)\])?(?:#(?P<run>\d+))?")


@dataclass(frozen=True, slots=True)
class HookpointName:
    """The parts of a hookpoint's name."""

    path: str
    """Path of the module; for an expert's map, of its experts module."""
    parameter: str | None = None
    """The experts' parameter; None if this is not an expert's map."""
    expert: int | None = None
    """The expert's number; None if this is not an expert's map."""
    run: int | None = None
    """Which of the module's runs in a pass, from 1; None for a module that runs once per pass."""

    @classmethod
    def of(cls, name: str) -> HookpointName:
        """Parse a hookpoint's name."""
        parts = _NAME.fullmatch(name)
        assert parts is not None
        run = int(parts["run"]) if parts["run"] else None
        if parts["expert"] is None:
            return cls(parts["path"], run=run)
        path, _, parameter = parts["path"].rpartition(".")
        return cls(path, parameter, int(parts["expert"]), run)

    @property
    def name(self) -> str:
        """The name that `of` parses."""
        inside = "" if self.parameter is None else f".{self.parameter}[{self.expert}]"
        return f"{self.path}{inside}" + ("" if self.run is None else f"#{self.run}")


def response_of(output: object) -> torch.Tensor | None:
    """Return a module's response: its output, or the first element of a tuple; None if that is not a tensor."""
    if isinstance(output, ModelOutput):
        output = output.to_tuple()
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, torch.Tensor) else None


def with_response(output: Any, response: torch.Tensor) -> Any:
    """Return a copy of a module's output with another response and all other elements unchanged."""
    if isinstance(output, ModelOutput):
        changed = copy.copy(output)
        changed[next(iter(output.keys()))] = response
        return changed
    if isinstance(output, tuple) and hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: response})  # type: ignore[attr-defined]
    if isinstance(output, tuple | list):
        return type(output)([response, *output[1:]])
    return response


@dataclass(slots=True)
class Pass:
    """The texts of a forward pass."""

    batch: int
    """Number of texts."""
    tokens: int
    """Number of new tokens per text, including padding."""
    mask: torch.Tensor | None
    """(batch, cached and new tokens) attention mask, 0 at padding; None if there is none of that shape."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Pass | None:
        """Describe the pass from the base model's arguments; None if they are not texts of tokens."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        if not isinstance(tokens, torch.Tensor) or tokens.ndim < 2:
            return None
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.shape[1] < tokens.shape[1]:
            mask = None
        return cls(tokens.shape[0], tokens.shape[1], mask)

    def last(self, device: torch.device) -> torch.Tensor:
        """Return (batch, tokens): True at each text's last token that is not padding."""
        positions = torch.arange(self.tokens, device=device)
        if self.mask is None:
            return (positions == self.tokens - 1).expand(self.batch, -1)
        real = self.mask[:, -self.tokens :].to(device) > 0
        return torch.where(real, positions, -1).amax(dim=1, keepdim=True) == positions


@dataclass(frozen=True, slots=True)
class Where:
    """The tokens that a response belongs to."""

    current: Pass | None
    """The pass; None if it does not run over texts of tokens."""
    routed: torch.Tensor | None = None
    """(tokens,) for an expert's map: flat positions in the batch; None for all tokens."""
    owned: bool = False
    """Whether the response may be changed in place, because nothing else refers to it."""


class _Runs:
    """Counts how often each hooked module has run in the current pass, and describes that pass."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self.current: Pass | None = None
        self.everywhere = Where(None)
        self.owned = Where(None, owned=True)

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a pass; this is the forward pre-hook of the base model."""
        self.counts.clear()
        self.current = Pass.of(args, kwargs)
        self.everywhere = Where(self.current)
        self.owned = Where(self.current, owned=True)

    def check_shape(self, name: str, output: object, response: torch.Tensor | None) -> torch.Tensor:
        """Return the response, or raise a UserError if it is not over the pass's tokens."""
        now = self.current
        shapes = () if now is None else ((now.batch, now.tokens), (now.batch * now.tokens,))
        if response is None or (shapes and tuple(response.shape[:-1]) not in shapes):
            found = type(output).__name__ if response is None else tuple(response.shape)
            batch = shapes[0] if shapes else "(batch, tokens)"
            raise UserError(
                f"hookpoint {name!r} gives {found} for {batch} tokens, expected a tensor (batch, tokens, channels); "
                "leave it out"
            )
        return response


@contextmanager
def _counting(model: PreTrainedModel, runs: _Runs) -> Iterator[None]:
    """While open, each forward pass of the base model restarts the counts."""
    handle = model.base_model.register_forward_pre_hook(runs.begin, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def observing(model: PreTrainedModel, parsed_names: Sequence[HookpointName], record: Recorder) -> Iterator[_Runs]:
    """While open, call `record(name, response)` at every run of the named modules, whatever their `run`.

    The names passed to it all end in the run's number, ``#1`` for the first. Yields the counts of the pass.
    """
    runs = _Runs()
    maps: dict[str, list[Map]] = defaultdict(list)
    paths: dict[str, None] = {}
    for parsed in parsed_names:
        if parsed.parameter is None or parsed.expert is None:
            paths[parsed.path] = None
        else:
            maps[parsed.path].append((parsed.parameter, parsed.expert))

    def reader(path: str) -> Callable[..., None]:
        def read(module: nn.Module, inputs: object, output: object) -> None:
            runs.counts[path] += 1
            record(HookpointName(path, run=runs.counts[path]).name, runs.check_shape(path, output, response_of(output)))

        return read

    with ExitStack() as hooks:
        hooks.enter_context(_counting(model, runs))
        for path in paths:
            hooks.callback(module_at(model, path).register_forward_hook(reader(path)).remove)
        for path, chosen in maps.items():
            hooks.enter_context(_observing_experts(module_at(model, path), path, chosen, runs, record))
        yield runs


@contextmanager
def _observing_experts(
    module: nn.Module, path: str, maps: Sequence[Map], runs: _Runs, record: Recorder
) -> Iterator[None]:
    """`observing` for one experts module: dense responses, 0 at tokens that are not routed to the expert."""
    wanted = frozenset(maps)

    def name(found: Map) -> str:
        return HookpointName(path, *found, run=runs.counts[path] + 1).name

    def on_map(found: Map, tokens: torch.Tensor, output: torch.Tensor, count: int) -> None:
        if found in wanted:
            dense = output.new_zeros(count, output.shape[-1])
            dense.index_copy_(0, tokens, output)
            record(name(found), runs.check_shape(path, dense, dense))

    def on_done(ran: set[Map], count: int) -> None:
        for found in maps:
            if found not in ran:
                stacked = getattr(module, found[0])
                record(name(found), stacked.new_zeros(1, 1).expand(count, stacked.shape[1]))
        runs.counts[path] += 1

    with intercept_expert_maps(module, maps, on_map, on_done):
        yield


@contextmanager
def reading(model: PreTrainedModel, names: Sequence[str], record: Recorder) -> Iterator[None]:
    """While open, call `record(name, response)` for each hookpoint at every forward pass of ``model.base_model``.

    The calls come in execution order. Experts to which no token of the pass is routed come after the others of their
    module; their response is zeros that take no memory.

    Raises:
        UserError: during a pass, if an output is not over the pass's tokens; at its end, if a module did not run as
            often as `names` say.
    """
    parsed_names = [HookpointName.of(name) for name in names]
    expected: dict[str, int] = {}
    for parsed in parsed_names:
        expected[parsed.path] = max(expected.get(parsed.path, 1), parsed.run or 1)
    # A module's only run has no number in its name.
    known = {HookpointName(p.path, p.parameter, p.expert, p.run or 1).name: p.name for p in parsed_names}

    def record_known(name: str, response: torch.Tensor) -> None:
        if name in known:
            record(known[name], response)

    with observing(model, parsed_names, record_known) as runs, ExitStack() as hooks:

        def check(module: nn.Module, args: object, output: object) -> None:
            for path, times in expected.items():
                if runs.counts[path] != times:
                    raise UserError(
                        f"hookpoint {path!r} ran {runs.counts[path]} times in this pass, expected {times} as when the "
                        "hookpoints were found; leave it out"
                    )

        hooks.callback(model.base_model.register_forward_hook(check).remove)
        yield


@contextmanager
def changing(model: PreTrainedModel, changes: Mapping[str, Change]) -> Iterator[None]:
    """While open, replace each named hookpoint's response by the result of its change, at every forward pass.

    An expert's map is changed only at the tokens routed to that expert.

    Raises:
        UserError: at the end of a pass in which a hookpoint's module did not run, so that nothing was changed.
    """
    runs = _Runs()
    at_modules: dict[str, dict[int | None, Change]] = defaultdict(dict)
    at_experts: dict[str, dict[tuple[Map, int | None], Change]] = defaultdict(dict)
    expected: dict[str, int] = {}
    for name, change in changes.items():
        parsed = HookpointName.of(name)
        expected[parsed.path] = max(expected.get(parsed.path, 1), parsed.run or 1)
        if parsed.parameter is None or parsed.expert is None:
            at_modules[parsed.path][parsed.run] = change
        else:
            at_experts[parsed.path][(parsed.parameter, parsed.expert), parsed.run] = change

    def check(module: nn.Module, args: object, output: object) -> None:
        for path, times in expected.items():
            if runs.counts[path] < times:
                raise UserError(
                    f"{path!r} ran {runs.counts[path]} times in a pass, expected {times}: its units were not set; "
                    "turn off what bypasses it (compiled graphs, early exit), or leave out its layer"
                )

    with ExitStack() as hooks:
        hooks.enter_context(_counting(model, runs))
        for path, by_run in at_modules.items():
            module = module_at(model, path)
            hooks.callback(module.register_forward_hook(_changer(module, path, by_run, runs)).remove)
        for path, by_map in at_experts.items():
            hooks.enter_context(_changing_experts(module_at(model, path), path, by_map, runs))
        hooks.callback(model.base_model.register_forward_hook(check).remove)
        yield


def _changer(module: nn.Module, path: str, by_run: Mapping[int | None, Change], runs: _Runs) -> Callable[..., Any]:
    counts, only, hooks = runs.counts, by_run.get(None), module._forward_hooks
    # These modules return a new tensor, never a view of one that something else uses.
    returns_new = type(module) in (nn.Linear, Conv1D)

    def change_run(module: nn.Module, inputs: object, output: Any) -> Any:
        counts[path] += 1
        # This runs once per hookpoint and token, so the common case does as little as possible.
        if only is not None and isinstance(output, torch.Tensor):
            owned = returns_new and len(hooks) == 1 and not torch.is_grad_enabled()
            return only(output, runs.owned if owned else runs.everywhere)
        change = only or by_run.get(counts[path])
        if change is None:
            return output
        response = runs.check_shape(path, output, response_of(output))
        return with_response(output, change(response, runs.everywhere))

    return change_run


@contextmanager
def _changing_experts(
    module: nn.Module, path: str, by_map: Mapping[tuple[Map, int | None], Change], runs: _Runs
) -> Iterator[None]:
    def on_map(found: Map, tokens: torch.Tensor, output: torch.Tensor, count: int) -> torch.Tensor | None:
        change = by_map.get((found, runs.counts[path] + 1)) or by_map.get((found, None))
        return None if change is None else change(output, Where(runs.current, tokens))

    def on_done(ran: set[Map], count: int) -> None:
        runs.counts[path] += 1

    with intercept_expert_maps(module, [found for found, _ in by_map], on_map, on_done):
        yield


def module_at(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a path.

    Raises:
        UserError: the model has none there.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__} has no module {path!r}, which a hookpoint names; load the model that the "
            "hookpoints were found in, with or without its head as then"
        ) from error
