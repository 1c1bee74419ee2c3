"""Finds a model's hookpoints (the module outputs that are read) and numbers their channels as units.

Unit ids are contiguous: hookpoints in execution order, channels in order. `expertmine.model.hooks` defines the names
of hookpoints and reads them; this module knows only which there are.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from expertmine.errors import UserError
from expertmine.model.fused_experts import expert_maps, is_fused, is_readable, map_width
from expertmine.model.hooks import HookpointName, observing
from expertmine.specs.hookpoints import Hookpoint


def blocks(model: PreTrainedModel) -> list[str]:
    """Return the paths of the transformer blocks: members of the lists with one entry per layer.

    For a model that reuses fewer blocks (ALBERT), the modules whose hidden states transformers records.
    """
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    names = {module: name for name, module in model.named_modules()}
    found = [
        names[block]
        for module in names
        if isinstance(module, nn.ModuleList) and len(module) == layers
        for block in module
        # A list of bare Linears may have the same length by chance.
        if list(block.children())
    ]
    if not found:
        kind = (getattr(model, "_can_record_outputs", None) or {}).get("hidden_states")
        if isinstance(kind, type):
            found = [name for module, name in names.items() if isinstance(module, kind)]
    outer = tuple(f"{name}." for name in found)
    return [name for name in dict.fromkeys(found) if not name.startswith(outer)]


def left_out_experts(model: PreTrainedModel) -> list[str]:
    """List fused experts modules that do not use linear maps of gathered tokens, and so have no units.

    GPT-OSS and Llama 4 have such modules; the rest of their blocks is hooked as usual.
    """
    return [name for name, module in model.named_modules() if is_fused(module) and not is_readable(module)]


def default_names(model: PreTrainedModel) -> list[str]:
    """Return every ``Linear`` and ``Conv1D`` inside the transformer blocks: no LM head, embeddings or norms.

    In a mixture of experts, also the linear maps of every expert, ``….experts.down_proj[3]``; see `left_out_experts`.
    """
    inside = tuple(f"{name}." for name in blocks(model))
    names: list[str] = []
    for name, module in model.named_modules():
        if not name.startswith(inside):
            continue
        if isinstance(module, nn.Linear | Conv1D):
            names.append(name)
        elif is_readable(module):
            names.extend(_map_names(name, module))
    return names


def _in_attention(model: PreTrainedModel, name: str) -> bool:
    """Return whether a hookpoint is inside an attention module, by the names and classes of its enclosing modules."""
    block = next(block for block in blocks(model) if name.startswith(f"{block}."))
    around = name.removeprefix(f"{block}.").split(".")[:-1]
    paths = [".".join([block, *around[: depth + 1]]) for depth in range(len(around))]
    kinds = [type(model.get_submodule(path)).__name__ for path in paths]
    return any("attn" in word.lower() or "attention" in word.lower() for word in [*around, *kinds])


PRESETS: dict[str, Callable[[PreTrainedModel], list[str]]] = {
    "linear": default_names,
    "attention": lambda model: [name for name in default_names(model) if _in_attention(model, name)],
    "mlp": lambda model: [name for name in default_names(model) if not _in_attention(model, name)],
    "residual": blocks,
}
"""Named choices of hookpoints: the default, its parts inside and outside attention, and the blocks' outputs."""


def matching_names(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Return the modules and experts' maps that match a pattern: a preset's name or a glob over paths.

    A module with several paths is one module; any of them matches, the first is its name.

    Raises:
        UserError: a pattern matches nothing, or only experts whose maps cannot be intercepted.
    """
    first: dict[nn.Module, str] = {}
    paths: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = first.setdefault(module, path)
        if path:
            paths[path] = name
        if is_readable(module):
            own = _map_names(name, module)
            paths.update(zip(_map_names(path, module), own, strict=True))
    chosen: set[str] = set()
    for pattern in patterns:
        found = PRESETS[pattern](model) if pattern in PRESETS else _glob(paths, pattern)
        if not found:
            raise UserError(_no_match(model, pattern, paths))
        chosen.update(found)
    return [name for name in dict.fromkeys(paths.values()) if name in chosen]


def _glob(paths: dict[str, str], pattern: str) -> list[str]:
    """Return the names of the paths that match a glob; ``[3]`` at its end means expert 3, not a character set."""
    literal = pattern.replace("[", "[[]") if pattern.endswith("]") else pattern
    return [name for path, name in paths.items() if fnmatchcase(path, pattern) or fnmatchcase(path, literal)]


def _map_names(path: str, module: nn.Module) -> list[str]:
    return [HookpointName(path, parameter, expert).name for parameter, expert in expert_maps(module)]


def _no_match(model: PreTrainedModel, pattern: str, paths: Iterable[str]) -> str:
    """Explain why a pattern matches nothing, with a suggestion."""
    for name in left_out_experts(model):
        if any(fnmatchcase(path, pattern) for path in _map_names(name, model.get_submodule(name))):
            return (
                f"hookpoint pattern {pattern!r} matches experts of {type(model.get_submodule(name)).__name__}, which "
                f"does not compute by plain linear maps; hook the whole module, {name!r}"
            )
    if pattern in PRESETS:
        return f"{type(model).__name__} has no hookpoints of the preset {pattern!r}; name modules by a glob"
    known = list(paths)
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    near = difflib.get_close_matches(pattern, [*known, *PRESETS], n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"the model has {', '.join(leaves[:6])}, …"
    return f"hookpoint pattern {pattern!r} matches no module; {hint}"


def find_hookpoints(model: PreTrainedModel, patterns: Sequence[str] = ()) -> tuple[Hookpoint, ...]:
    """Find the model's hookpoints in execution order by running two sentences of three tokens through it.

    A module that runs n > 1 times per pass becomes n hookpoints, ``name#1`` to ``name#n``. A module's experts come in
    their order, each with its maps in execution order.

    Args:
        patterns: presets (`PRESETS`) and globs over module paths; empty for the preset ``linear``.

    Raises:
        UserError: nothing matches, or a module does not run, or its output (or the first element of it) is not
            (batch, tokens, channels) or (batch × tokens, channels).
    """
    names = matching_names(model, patterns) if patterns else default_names(model)
    if not names:
        raise UserError(
            f"{type(model).__name__} has no Linear or Conv1D inside transformer blocks; choose hookpoints by name"
        )
    parsed_names = [HookpointName.of(name) for name in names]
    widths: dict[str, int] = {}

    def record(name: str, response: torch.Tensor) -> None:
        widths[name] = response.shape[-1]

    with observing(model, parsed_names, record) as runs, torch.inference_mode():
        # Two sentences of three tokens: no other axis of a module's output can be mistaken for the tokens.
        model.base_model(input_ids=torch.tensor([[2, 3, 4], [4, 3, 2]], device=model.device))
    for parsed in parsed_names:
        if not runs.counts[parsed.path]:
            raise UserError(f"hookpoint {parsed.name!r} does not run in a forward pass; leave it out")
    hookpoints: list[Hookpoint] = []
    for name, width in _ordered(model, parsed_names, widths).items():
        first = hookpoints[-1].units.stop if hookpoints else 0
        run = HookpointName.of(name).run
        only = runs.counts[HookpointName.of(name).path] == 1
        hookpoints.append(Hookpoint(name.removesuffix(f"#{run}") if only else name, width, first))
    return tuple(hookpoints)


def _ordered(model: PreTrainedModel, parsed_names: Sequence[HookpointName], widths: dict[str, int]) -> dict[str, int]:
    """Order the widths independently of the tokens run: experts that no token reached take their regular position."""
    maps: dict[str, list[HookpointName]] = {}
    for parsed in parsed_names:
        if parsed.parameter is not None:
            maps.setdefault(parsed.path, []).append(parsed)
    ordered: dict[str, int] = {}
    for name, width in widths.items():
        parsed = HookpointName.of(name)
        if parsed.parameter is None:
            ordered[name] = width
            continue
        for each in maps[parsed.path]:
            module = model.get_submodule(each.path)
            ordered.setdefault(
                HookpointName(each.path, each.parameter, each.expert, parsed.run).name,
                map_width(module, str(each.parameter)),
            )
    return ordered
