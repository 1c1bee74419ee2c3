"""Architectures other than GPT-2, with random weights: units, responses against a naive loop, and whole jobs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support.plans import plan_new
from support.tiny_models import BUILDERS, ENCODERS, save_model
from torch.nn import functional
from transformers import PreTrainedModel

from expertmine.index.experts import Experts
from expertmine.mining.mine import run_all
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.load import load_model, tokenise
from expertmine.model.responses import forward_passes, make_batches, padding_id
from expertmine.runtime.cluster import Cluster
from expertmine.specs.settings import ResponseSpec
from expertmine.steering.assignment import Steering
from expertmine.steering.generation import GenerationRequest, Generator

ATTENTION = 32 + 16 + 16 + 32  # grouped queries: q, k, v, o
GATED = 48 + 48 + 32  # gate, up, down
UNITS_A_LAYER = {
    "gpt2": 9 * 32,
    "llama": ATTENTION + GATED,
    "mistral": ATTENTION + GATED,
    "qwen2": ATTENTION + GATED,
    "gemma3": ATTENTION + GATED,
    "gpt-neox": 96 + 32 + 48 + 32,
    "opt": 4 * 32 + 48 + 32,
    "bloom": 96 + 32 + 128 + 32,
    "bert": 4 * 32 + 48 + 32,
    "roberta": 4 * 32 + 48 + 32,
    "albert": 4 * 32 + 48 + 32,  # one layer's weights, run three times
    "mixtral": ATTENTION + 4 * (2 * 48 + 32),
}
LAYERS = dict.fromkeys(UNITS_A_LAYER, 2) | {"albert": 3}
SENTENCES = [
    "a cat",
    "the dog ran into the old barn at night and did not come back",
    "a hammer made of hard wood and brass",
    "the eagle",
]


def responses_by_hand(model: PreTrainedModel, ids: list[int]) -> dict[str, torch.Tensor]:
    """Return the responses (tokens, channels) of every module and expert to a single sentence, by hookpoint name."""
    calls: dict[str, list[torch.Tensor]] = defaultdict(list)
    entered: dict[str, tuple[torch.Tensor, ...]] = {}
    handles = []
    for name, module in model.named_modules():

        def keep(module: object, inputs: object, output: object, name: str = name) -> None:
            if isinstance(output, torch.Tensor):
                calls[name].append(output)

        def enter(module: object, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            entered[name] = inputs

        handles.append(module.register_forward_hook(keep))
        if name.endswith(".experts"):
            handles.append(module.register_forward_pre_hook(enter))
    with torch.no_grad():
        model.base_model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    found: dict[str, torch.Tensor] = {}
    for name, outputs in calls.items():
        numbered = {name: outputs[0]} if len(outputs) == 1 else {f"{name}#{n + 1}": o for n, o in enumerate(outputs)}
        found.update({key: output.reshape(-1, output.shape[-1]) for key, output in numbered.items() if output.ndim})
    for name, (hidden, index, _) in entered.items():
        experts = model.get_submodule(name)
        for expert in range(4):
            routed = (index == expert).any(-1, keepdim=True)
            gate_up = hidden @ experts.gate_up_proj[expert].T
            gate, up = gate_up.chunk(2, -1)
            down = (functional.silu(gate) * up) @ experts.down_proj[expert].T
            found[f"{name}.gate_up_proj[{expert}]"] = torch.where(routed, gate_up, 0).detach()
            found[f"{name}.down_proj[{expert}]"] = torch.where(routed, down, 0).detach()
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_units_per_layer(name: str) -> None:
    hookpoints = find_hookpoints(BUILDERS[name]())
    assert sum(hookpoint.width for hookpoint in hookpoints) == LAYERS[name] * UNITS_A_LAYER[name]
    assert [unit for h in hookpoints for unit in h.units] == list(range(hookpoints[-1].units.stop))


@pytest.mark.parametrize("name", BUILDERS)
def test_responses_in_a_padded_batch_equal_those_of_single_sentences(name: str, tmp_path: Path) -> None:
    loaded = load_model(str(save_model(name, tmp_path)), device="cpu")
    hookpoints = find_hookpoints(loaded.model)
    texts = tokenise(loaded.tokenizer, SENTENCES, None)
    assert all(text.real[0] is False and text.real[-1] is (name not in ENCODERS) for text in texts)
    pooled = {}
    for dtype in ("float32", "float16"):
        spec = ResponseSpec(dtype=dtype, max_tokens=64)
        (batch,) = make_batches(texts, list(range(len(texts))), spec, padding_id(loaded.tokenizer))
        with forward_passes(loaded.model, hookpoints, spec) as forward:
            pooled[dtype] = forward(batch).responses[0]
    for at, row in enumerate(batch.rows):
        outputs = responses_by_hand(loaded.model, texts[row].ids)
        real = torch.tensor(texts[row].real)
        by_hand = torch.cat([outputs[hookpoint.name][real].amax(0) for hookpoint in hookpoints])
        torch.testing.assert_close(pooled["float32"][at], by_hand, rtol=1e-5, atol=1e-5)
        # Half a unit in the last of float16's 11 bits, plus the difference allowed for float32.
        torch.testing.assert_close(pooled["float16"][at].float(), by_hand, rtol=2**-11 + 1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt-neox", "opt", "mixtral"])
def test_mining_and_steering(name: str, tiny_corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plan, _ = plan_new(run, save_model(name, tmp_path / "model"), tiny_corpus)
    assert plan.layout.units == LAYERS[name] * UNITS_A_LAYER[name]
    run_all(run, ("serial", Cluster()), ("serial", Cluster()), top_k=30)
    best = Experts.load(run)["animal"].top(1)[0]
    assert 0.5 < best.ap <= 1
    generator = Generator(run, "cpu")
    request = GenerationRequest(("animal",), Steering(30), prompt="the", count=2, max_new_tokens=8)
    assert generator(request) != generator(GenerationRequest(prompt="the", count=2, max_new_tokens=8))
