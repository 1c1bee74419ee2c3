from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_models import BUILDERS, save_model
from transformers import PreTrainedModel

from expertmine import Experts, steer
from expertmine.errors import UserError
from expertmine.experts import ConceptExperts, Expert, Forcing
from expertmine.generate import GenerationRequest, Generator
from expertmine.models import LoadedModel, load_model
from expertmine.taps import reading
from expertmine.units import find_hookpoints


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model), device="cpu")


@pytest.fixture(scope="module")
def experts(mined: Path) -> Experts:
    return Experts.load(mined)


def outputs(loaded: LoadedModel, names: list[str]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the outputs of modules as the rest of the model sees them."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        loaded.model.get_submodule(name).register_forward_hook(lambda m, i, out, n=name: seen.__setitem__(n, out))
        for name in names
    ]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([[0, 17, 23, 99], [0, 5, 8, 1000]])).logits
    for handle in handles:
        handle.remove()
    return logits, seen


@pytest.mark.parametrize("forcing", ["mean", "p50", "p90", "zero"])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_experts_are_set_everywhere_and_nothing_else_of_their_module_changes(
    k: int, forcing: Forcing, loaded: LoadedModel, experts: Experts
) -> None:
    chosen = experts["animal"].top(k)
    first = min(chosen, key=lambda expert: expert.unit).hookpoint
    names = sorted({expert.hookpoint for expert in chosen})
    _, before = outputs(loaded, names)
    with steer(loaded.model, experts["animal"], k, forcing):
        _, during = outputs(loaded, names)
    statistic = {"mean": "on_mean", "p50": "on_p50", "p90": "on_p90"}
    for expert in chosen:
        expected = getattr(expert, statistic[forcing]) if forcing in statistic else 0.0
        assert (during[expert.hookpoint][..., expert.channel] == expected).all()
    others = torch.ones(before[first].shape[-1], dtype=torch.bool)
    others[[expert.channel for expert in chosen if expert.hookpoint == first]] = False
    assert torch.equal(during[first][..., others], before[first][..., others])


def test_outputs_after_leaving_are_those_from_before_also_after_an_exception(
    loaded: LoadedModel, experts: Experts
) -> None:
    before, _ = outputs(loaded, [])
    with steer(loaded.model, experts["tool"], 40):
        during, _ = outputs(loaded, [])
    assert not torch.equal(during, before)
    assert torch.equal(outputs(loaded, [])[0], before)
    with pytest.raises(RuntimeError), steer(loaded.model, experts["tool"], 40):
        raise RuntimeError
    assert torch.equal(outputs(loaded, [])[0], before)
    assert not any(module._forward_hooks for module in loaded.model.modules())


def forced_to(value: float, hookpoint: str, channels: list[int]) -> ConceptExperts:
    """Experts by hand, all with the same forcing value."""
    experts = tuple(
        Expert(rank + 1, channel, hookpoint, channel, *[1.0] * 6, value, value, value, 0.0)
        for rank, channel in enumerate(channels)
    )
    return ConceptExperts("anything", "", None, experts)  # type: ignore[arg-type]


def all_responses(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every response of two sentences, by hookpoint, as read beneath whatever is set."""
    seen: dict[str, torch.Tensor] = {}
    names = [hookpoint.name for hookpoint in find_hookpoints(model, ["linear", "residual"])]
    with reading(model, names, seen.__setitem__), torch.no_grad():
        # Token 0 is the filling one of some models: its embedding is 0, and so is all that an expert makes of it.
        model.base_model(input_ids=torch.tensor([[3, 17, 23, 99], [4, 5, 8, 1000]]))
    return seen


@pytest.mark.parametrize("architecture, name", [
    ("albert", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn#2"),
    ("mixtral", "model.layers.0.mlp.experts.down_proj[1]"),
    ("mixtral", "model.layers.0.mlp.experts.gate_up_proj[2]"),
])  # fmt: skip
def test_one_run_or_one_expert_is_set_and_what_ran_before_it_is_not(architecture: str, name: str) -> None:
    model = BUILDERS[architecture]()
    before = all_responses(model)
    with steer(model, forced_to(7.0, name, [3, 5]), 2, check=False):
        during = all_responses(model)
    earlier = list(before)[: list(before).index(name)]
    assert all(torch.equal(during[each], before[each]) for each in earlier)
    routed = before[name].any(-1)  # of a mixture's tokens; elsewhere all
    assert routed.any() and (during[name][routed][:, [3, 5]] == 7).all()
    assert (during[name][~routed] == 0).all()
    others = torch.ones(before[name].shape[-1], dtype=torch.bool)
    others[[3, 5]] = False
    assert torch.equal(during[name][..., others], before[name][..., others])
    assert any(not torch.equal(during[each], before[each]) for each in list(before)[len(earlier) + 1 :])
    after = all_responses(model)
    assert all(torch.equal(after[each], before[each]) for each in before)


def test_setting_an_expert_changes_the_experts_output_by_its_routing_weight_only() -> None:
    """Against an own computation of what the module adds up."""
    model = BUILDERS["mixtral"]()
    experts = model.get_submodule("model.layers.0.mlp.experts")
    taken: dict[str, tuple[torch.Tensor, ...]] = {}
    outputs: list[torch.Tensor] = []
    handles = [
        experts.register_forward_pre_hook(lambda m, inputs: taken.__setitem__("inputs", inputs)),
        experts.register_forward_hook(lambda m, inputs, output: outputs.append(output)),
    ]
    ids = torch.tensor([[0, 17, 23, 99, 5, 8, 1000]])
    name = "model.layers.0.mlp.experts.down_proj[1]"
    natural = {}
    with torch.no_grad():
        with reading(model, [name], natural.__setitem__):
            model(ids)
        with steer(model, forced_to(2.0, name, [4]), 1, check=False):
            model(ids)
    for handle in handles:
        handle.remove()
    _, index, weights = taken["inputs"]
    weight = torch.where(index == 1, weights, 0).sum(-1)
    expected = outputs[0].clone()
    expected[:, 4] += weight * (2.0 - natural[name][:, 4])
    assert (weight > 0).sum() > 0
    torch.testing.assert_close(outputs[1], expected, rtol=1e-5, atol=1e-6)


def test_a_tuples_first_element_is_set_and_the_rest_handed_on() -> None:
    model, seen = BUILDERS["gpt2"](), []
    attention = model.get_submodule("transformer.h.0.attn")
    with steer(model, forced_to(2.0, "transformer.h.0.attn", [1]), 1, check=False), torch.no_grad():
        handle = attention.register_forward_hook(lambda m, i, output: seen.append(output))
        model(torch.tensor([[0, 17, 23]]))
        handle.remove()
    assert isinstance(seen[0], tuple) and len(seen[0]) == 2
    assert (seen[0][0][..., 1] == 2).all() and not (seen[0][0][..., 0] == 2).any()


@pytest.mark.parametrize("architecture", ["mixtral", "gpt2"])
def test_steered_generation_with_a_cache_is_that_without_and_ends_clean(architecture: str) -> None:
    model = BUILDERS[architecture]()
    name = find_hookpoints(model, ["mlp"])[1].name
    prompt = torch.tensor([[0, 17, 23]])
    before = model(prompt).logits
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with pytest.raises(RuntimeError), steer(model, forced_to(9.0, name, [0, 1, 2]), 3, check=False):
        cached = model.generate(prompt, **settings, use_cache=True)  # type: ignore[operator]
        whole = model.generate(prompt, **settings, use_cache=False)  # type: ignore[operator]
        assert torch.equal(cached, whole)
        raise RuntimeError
    assert torch.equal(model(prompt).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_a_hookpoint_of_another_model_is_refused() -> None:
    with (
        pytest.raises(UserError, match=r"has no module 'model\.nothing'"),
        steer(BUILDERS["gpt2"](), forced_to(1.0, "model.nothing", [0]), 1, check=False),
    ):
        pass


def test_an_encoder_is_mined_but_not_generated_with(mined: Path, tmp_path: Path) -> None:
    shutil.copytree(mined / "experts", tmp_path / "experts")
    loaded = load_model(str(save_model("bert", tmp_path / "model")))
    facts = json.loads((tmp_path / "experts" / "index.json").read_text())
    facts["model"] = asdict(loaded.identity)
    (tmp_path / "experts" / "index.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="BertForMaskedLM, which writes no text"):
        Generator(tmp_path / "experts", "cpu")


def test_k_zero_changes_nothing(loaded: LoadedModel, experts: Experts) -> None:
    before, _ = outputs(loaded, [])
    with steer(loaded.model, experts["tool"], 0):
        assert torch.equal(outputs(loaded, [])[0], before)


def test_another_model_k_out_of_range_and_unknown_concepts_are_refused(loaded: LoadedModel, experts: Experts) -> None:
    with pytest.raises(UserError, match="k is 41: expected 0 to 40"), steer(loaded.model, experts["tool"], 41):
        pass
    with pytest.raises(UserError, match=r"no concept 'tol'.*did you mean tool"):
        experts["tol"]
    other = load_model("embedded", device="cpu").model
    with pytest.raises(UserError, match="other weights"), steer(other, experts["tool"], 5):
        pass


def test_the_index_can_be_moved_and_its_damage_is_noticed(
    mined: Path, tmp_path: Path, edit_json: Callable[..., None]
) -> None:
    folder = Path(shutil.copytree(mined / "experts", tmp_path / "packed"))
    assert Experts.load(folder)["animal"].top(3) == Experts.load(mined)["animal"].top(3)
    table = folder / "experts.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"does not match index\.json's checksum"):
        Experts.load(folder)
    edit_json(folder / "index.json", lambda facts: facts.update(format=99))
    with pytest.raises(UserError, match="not an expert index of format"):
        Experts.load(folder)


def test_a_run_without_an_index_says_what_to_do(planned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no expert index yet; run `expertmine mine"):
        Experts.load(planned)
    with pytest.raises(UserError, match="no such file"):
        Experts.load(tmp_path)


@pytest.fixture(scope="module")
def generator(mined: Path) -> Generator:
    return Generator(mined, "cpu")


def test_generation_is_seeded_and_steering_changes_it(generator: Generator) -> None:
    request = GenerationRequest("animal", k=40, prompt="the big", count=3, max_new_tokens=8)
    first = generator(request)
    assert len(first) == 3
    assert generator(request) == first
    assert generator(replace(request, seed=1)) != first
    unsteered = generator(replace(request, k=0))
    assert unsteered == generator(replace(request, concept=None))
    assert unsteered != first


def test_generation_equals_the_same_by_hand(generator: Generator, loaded: LoadedModel, experts: Experts) -> None:
    request = GenerationRequest("tool", k=20, prompt="a", count=2, max_new_tokens=6)
    ids = torch.tensor([loaded.tokenizer("a")["input_ids"]] * 2)
    torch.manual_seed(0)
    with steer(loaded.model, experts["tool"], k=20), torch.no_grad():
        output = loaded.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=10, max_new_tokens=6
        )
    texts = loaded.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    assert generator(request) == [text.strip() for text in texts]


@pytest.mark.parametrize("changes, message", [
    ({"k": 41}, "k is 41: expected 0 to 40"),
    ({"concept": "anmal"}, "did you mean animal"),
    ({"max_new_tokens": 64}, "the model reads 64"),
])  # fmt: skip
def test_impossible_requests_are_refused(changes: dict[str, object], message: str, generator: Generator) -> None:
    request = replace(GenerationRequest("animal", k=4, prompt="the"), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        generator(request)


@pytest.mark.parametrize("changes, message", [
    ({"count": 0}, "count is 0"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"forcing": "max"}, "forcing is 'max'"),
])  # fmt: skip
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationRequest("animal", **changes)  # type: ignore[arg-type]
