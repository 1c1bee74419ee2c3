"""Hookpoints and unit ids: which module outputs of a model are looked at, and how their channels are numbered.

Unit ids are contiguous: hookpoints in the order in which they run, channels in order. Knows no hooks; see
`expertmine.model.hooks` for what a hookpoint's name means.
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
    """Paths of the transformer blocks: the members of the lists that are as long as the model is deep.

    Where a model runs fewer blocks over and over (ALBERT), those that transformers itself records hidden states of.
    """
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    names = {module: name for name, module in model.named_modules()}
    found = [
        names[block]
        for module in names
        if isinstance(module, nn.ModuleList) and len(module) == layers
        for block in module
        # A list of bare Linears may be as long by chance.
        if list(block.children())
    ]
    if not found:
        kind = (getattr(model, "_can_record_outputs", None) or {}).get("hidden_states")
        if isinstance(kind, type):
            found = [name for module, name in names.items() if isinstance(module, kind)]
    outer = tuple(f"{name}." for name in found)
    return [name for name in dict.fromkeys(found) if not name.startswith(outer)]


def left_out_experts(model: PreTrainedModel) -> list[str]:
    """Modules of fused experts that compute otherwise than by linear maps of gathered tokens: their maps have no units.

    GPT-OSS and Llama 4 are such models; the rest of their blocks is hooked as ever.
    """
    return [name for name, module in model.named_modules() if is_fused(module) and not is_readable(module)]


def default_names(model: PreTrainedModel) -> list[str]:
    """Every ``Linear`` and ``Conv1D`` inside the transformer blocks: no LM head, embeddings or norms.

    In a mixture of experts also the linear maps of every expert, ``….experts.down_proj[3]``; see `left_out_experts`.
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
    """Whether a hookpoint lies in an attention module, by the names and the classes of the modules around it."""
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
"""Hookpoints chosen by a name: the default, those of it inside attention modules, the others, the blocks' outputs."""


def matching_names(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Modules and experts' maps that one of the patterns chooses, a preset's name or a glob over paths.

    A module that goes by several paths is one module; any of them finds it, the first is its name.

    Raises:
        UserError: a pattern matches nothing, or only experts that cannot be read.
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
    """Names of the paths that a glob matches; ``[3]`` at its end means that expert, not a set of characters."""
    literal = pattern.replace("[", "[[]") if pattern.endswith("]") else pattern
    return [name for path, name in paths.items() if fnmatchcase(path, pattern) or fnmatchcase(path, literal)]


def _map_names(path: str, module: nn.Module) -> list[str]:
    return [HookpointName(path, parameter, expert).name for parameter, expert in expert_maps(module)]


def _no_match(model: PreTrainedModel, pattern: str, paths: Iterable[str]) -> str:
    """Why a pattern chooses nothing, and what would."""
    for name in left_out_experts(model):
        if any(fnmatchcase(path, pattern) for path in _map_names(name, model.get_submodule(name))):
            return (
                f"hookpoint pattern {pattern!r} asks for experts of {type(model.get_submodule(name)).__name__}, which "
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
    """The model's hookpoints in execution order, found by running two sentences of three tokens through it.

    A module that runs n > 1 times a pass becomes n hookpoints, ``name#1`` to ``name#n``. The experts of a module stand
    in their order, each with its maps in the order in which it runs them.

    Args:
        patterns: presets (`PRESETS`) and globs over module paths; none means the preset ``linear``.

    Raises:
        UserError: nothing to hook, or a module that does not run, or does not give (batch, tokens, channels) or
            (batch × tokens, channels), by itself or as the first element of a tuple.
    """
    names = matching_names(model, patterns) if patterns else default_names(model)
    if not names:
        raise UserError(f"{type(model).__name__} has no Linear or Conv1D inside transformer blocks; name hookpoints")
    parsed_names = [HookpointName.of(name) for name in names]
    widths: dict[str, int] = {}

    def record(name: str, response: torch.Tensor) -> None:
        widths[name] = response.shape[-1]

    with observing(model, parsed_names, record) as runs, torch.inference_mode():
        # Two sentences of three tokens: no axis of a module's output that is not over tokens looks like one.
        model.base_model(input_ids=torch.tensor([[2, 3, 4], [4, 3, 2]], device=model.device))
    for parsed in parsed_names:
        if not runs.runs[parsed.path]:
            raise UserError(f"hookpoint {parsed.name!r} does not run in a forward pass; leave it out")
    hookpoints: list[Hookpoint] = []
    for name, width in _ordered(model, parsed_names, widths).items():
        first = hookpoints[-1].units.stop if hookpoints else 0
        run = HookpointName.of(name).run
        only = runs.runs[HookpointName.of(name).path] == 1
        hookpoints.append(Hookpoint(name.removesuffix(f"#{run}") if only else name, width, first))
    return tuple(hookpoints)


def _ordered(model: PreTrainedModel, parsed_names: Sequence[HookpointName], widths: dict[str, int]) -> dict[str, int]:
    """Widths in an order that does not hang on the tokens run: experts that none reached stand among the others."""
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
