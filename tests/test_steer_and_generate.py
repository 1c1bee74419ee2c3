from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expertmine import Experts, steer
from expertmine.errors import UserError
from expertmine.experts import Forcing
from expertmine.generate import GenerationRequest, Generator
from expertmine.models import LoadedModel, load_model


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
