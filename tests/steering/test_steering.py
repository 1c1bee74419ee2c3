"""Which units are set, to which values and where: against computations by hand on unsteered responses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny_models import BUILDERS
from transformers import PreTrainedModel

from expertmine import Experts, steer
from expertmine.errors import UserError
from expertmine.index.units import ConceptExperts, Expert
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.hooks import reading
from expertmine.model.load import load_model, weights_hash
from expertmine.specs.identity import ModelIdentity
from expertmine.steering.assignment import Steering, assign, chosen_experts
from expertmine.steering.interventions import Steered, steer_rows

SOMEBODY = ModelIdentity("a model", None, "None", "0" * 64, "0" * 64)
MLP = "transformer.h.0.mlp.c_fc"


def expert(rank: int, hookpoint: str, channel: int, value: float, ap: float = 0.5) -> Expert:
    return Expert(rank, channel, hookpoint, channel, ap, *[1.0] * 5, value, value + 1, value + 2, 0.0)


def concept(name: str, *experts: Expert) -> ConceptExperts:
    return ConceptExperts(name, "", SOMEBODY, experts)


def responses(
    model: PreTrainedModel, hookpoint: str, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(batch, tokens, channels) or (batch × tokens, channels) of one hookpoint, as the model goes on with them."""
    seen: dict[str, torch.Tensor] = {}
    with reading(model, [hookpoint], seen.__setitem__), torch.no_grad():
        model.base_model(input_ids=ids, attention_mask=mask)
    return seen[hookpoint].clone()


IDS = torch.tensor([[3, 17, 23, 99], [4, 5, 8, 1000]])
A = concept("a", expert(1, MLP, 3, 5.0), expert(2, MLP, 9, -4.0))
B = concept("b", expert(1, MLP, 9, 8.0, ap=0.9), expert(2, MLP, 20, 2.0))


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    return BUILDERS["gpt2"]()


def moved(before: torch.Tensor, channels: dict[int, float], strength: float = 1.0) -> torch.Tensor:
    expected = before.clone()
    for channel, value in channels.items():
        own = before[..., channel]
        expected[..., channel] = value if strength == 1 else own + strength * (value - own)
    return expected


def test_strength_moves_units_part_of_the_way(gpt2: PreTrainedModel) -> None:
    before = responses(gpt2, MLP, IDS)
    for strength in (0.0, 0.25, 1.0):
        with steer(gpt2, A, 2, strength=strength, check=False):
            during = responses(gpt2, MLP, IDS)
        torch.testing.assert_close(during, moved(before, {3: 5.0, 9: -4.0}, strength), rtol=1e-6, atol=1e-6)
        if strength == 0:
            assert torch.equal(during, before)


@pytest.mark.parametrize("conflicts, value", [("best", 8.0), ("first", -4.0), ("mean", 2.0)])
def test_a_unit_that_concepts_share_is_set_by_the_rule(gpt2: PreTrainedModel, conflicts: str, value: float) -> None:
    before = responses(gpt2, MLP, IDS)
    with steer(gpt2, [A, B], 2, conflicts=conflicts, check=False):  # type: ignore[arg-type]
        during = responses(gpt2, MLP, IDS)
    assert torch.equal(during, moved(before, {3: 5.0, 9: value, 20: 2.0}))


def test_of_equal_experts_the_concept_named_first_decides() -> None:
    other = concept("c", expert(1, MLP, 3, 7.0))
    assert assign([A, other], Steering(1))[MLP][3] == 5
    assert assign([other, A], Steering(1))[MLP][3] == 7


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_the_last_token_alone_is_set(gpt2: PreTrainedModel, padding: str) -> None:
    mask = torch.ones_like(IDS)
    last = [3, 3]
    if padding == "left":
        mask[0, :2] = 0
    elif padding == "right":
        mask[0, 2:] = 0
        last = [1, 3]
    given = None if padding == "none" else mask
    before = responses(gpt2, MLP, IDS, given)
    expected = before.clone()
    for row, at in enumerate(last):
        expected[row, at, 3], expected[row, at, 9] = 5, -4
    with steer(gpt2, A, 2, tokens="last", check=False):
        assert torch.equal(responses(gpt2, MLP, IDS, given), expected)


def test_with_a_cache_the_last_token_is_each_new_one(gpt2: PreTrainedModel) -> None:
    """Prompt tokens but the last stay as they are; each generated one was the last when it was read."""
    seen: list[torch.Tensor] = []
    settings = {"max_new_tokens": 3, "do_sample": False, "attention_mask": torch.ones_like(IDS), "pad_token_id": 0}
    with (
        steer(gpt2, A, 2, tokens="last", check=False),
        reading(gpt2, [MLP], lambda _, found: seen.append(found.clone())),
    ):
        gpt2.generate(IDS, **settings)  # type: ignore[operator]
    assert [step.shape[1] for step in seen] == [4, 1, 1]
    assert all((step[:, -1, 3] == 5).all() for step in seen)
    assert not (seen[0][:, :-1, 3] == 5).any()


def test_each_row_of_a_batch_is_steered_in_its_own_way(gpt2: PreTrainedModel) -> None:
    ids = torch.cat([IDS, IDS])
    before = responses(gpt2, MLP, ids)
    rows = [Steered((A,), Steering(2)), None, Steered((B,), Steering(1, strength=0.5)), Steered((A, B), Steering(2))]
    with steer_rows(gpt2, rows, check=False):
        during = responses(gpt2, MLP, ids)
    expected = torch.stack([
        moved(before[0], {3: 5.0, 9: -4.0}),
        before[1],
        moved(before[2], {9: 8.0}, 0.5),
        moved(before[3], {3: 5.0, 9: 8.0, 20: 2.0}),
    ])  # fmt: skip
    torch.testing.assert_close(during, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(during[1], before[1])


@pytest.mark.parametrize("tokens", ["all", "last"])
def test_rows_of_a_mixture_reach_only_the_tokens_routed_to_the_expert(tokens: str) -> None:
    model = BUILDERS["mixtral"]()
    name = "model.layers.0.mlp.experts.gate_up_proj[2]"
    before = responses(model, name, IDS)
    routed = before.any(-1)
    assert routed.any() and not routed.all()
    row = Steered((concept("a", expert(1, name, 4, 6.0)),), Steering(1, tokens=tokens))  # type: ignore[arg-type]
    expected = before.clone()
    reached = routed.clone().view(2, 4)
    reached[0] = False
    if tokens == "last":
        reached[:, :-1] = False
    expected[reached.view(-1), 4] = 6
    with steer_rows(model, [None, row], check=False):
        assert torch.equal(responses(model, name, IDS), expected)


def greedy(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, **settings: object) -> list[list[int]]:
    output = model.generate(  # type: ignore[operator]
        ids, attention_mask=mask, do_sample=False, max_new_tokens=6, pad_token_id=0, eos_token_id=None, **settings
    )
    return output[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mixtral"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_left_padded_batch_with_beams_is_each_prompt_alone(architecture: str, beams: int) -> None:
    model = BUILDERS[architecture]()
    name = find_hookpoints(model, ["mlp"])[0].name
    rows = [
        Steered((concept("a", expert(1, name, 3, 9.0), expert(2, name, 5, -9.0)),), Steering(2)),
        None,
        Steered((concept("b", expert(1, name, 1, 9.0)),), Steering(1, tokens="last")),
    ]
    prompts = [[3, 17], [4, 5, 8, 1000], [23, 11, 7]]
    ids = torch.tensor([[0] * (4 - len(each)) + each for each in prompts])
    mask = torch.tensor([[0] * (4 - len(each)) + [1] * len(each) for each in prompts])
    with steer_rows(model, rows, check=False):
        together = greedy(model, ids, mask, num_beams=beams, num_return_sequences=beams)
    for at, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        alone_ids = torch.tensor([prompt])
        with steer_rows(model, [row], check=False):
            alone = greedy(model, alone_ids, torch.ones_like(alone_ids), num_beams=beams, num_return_sequences=beams)
        assert together[at * beams : (at + 1) * beams] == alone


def test_a_batch_that_does_not_fit_the_rows_is_refused(gpt2: PreTrainedModel) -> None:
    rows = [Steered((A,), Steering(1)), None, None]
    with (
        pytest.raises(UserError, match="the batch has 2 texts and the steering 3 rows"),
        steer_rows(gpt2, rows, check=False),
    ):
        gpt2(IDS)
    assert not any(module._forward_hooks for module in gpt2.modules())


def test_under_autocast_units_are_set_in_autocasts_type(gpt2: PreTrainedModel) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        before = responses(gpt2, MLP, IDS)
        with steer(gpt2, A, 2, check=False):
            during = responses(gpt2, MLP, IDS)
    assert during.dtype == before.dtype == torch.bfloat16
    assert (during[..., 3] == 5).all()
    with steer(gpt2, A, 2, check=False):
        assert responses(gpt2, MLP, IDS).dtype == torch.float32


def test_a_module_that_a_pass_bypasses_is_reported(gpt2: PreTrainedModel) -> None:
    """Such as a layer that is skipped: steering that does nothing must not look like steering."""
    block = gpt2.get_submodule("transformer.h.0.mlp")
    block.forward = lambda hidden: hidden  # type: ignore[method-assign]
    try:
        with pytest.raises(UserError, match=r"c_fc' ran 0 times in a pass, expected 1"), steer(gpt2, A, 1, check=False):
            gpt2(IDS)
    finally:
        del block.forward
    with steer(gpt2, A, 1, check=False):
        gpt2(IDS)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_a_model_whose_weights_are_elsewhere_is_steered_and_recognised(
    offload: str, mined: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Accelerate keeps parameters on the meta device and loads them for each call of a module."""
    accelerate = pytest.importorskip("accelerate")
    experts = Experts.load(mined)["animal"]
    whole = load_model(str(tiny_model), device="cpu").model
    with steer(whole, experts, 25), torch.no_grad():
        expected = whole(IDS).logits
    apart = load_model(str(tiny_model), device="cpu").model
    apart = type(apart).from_pretrained(tiny_model).eval()
    if offload == "cpu":
        accelerate.cpu_offload(apart, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(apart, tmp_path / "weights", execution_device=torch.device("cpu"))
    assert any(parameter.is_meta for parameter in apart.parameters())
    with torch.no_grad():
        before = apart(IDS).logits
        with steer(apart, experts, 25):
            torch.testing.assert_close(apart(IDS).logits, expected)
        assert torch.equal(apart(IDS).logits, before)
    with torch.no_grad():
        whole.get_submodule("transformer.h.1.mlp.c_fc").weight[0, 0] += 1  # type: ignore[operator, index]
    other = type(apart)(apart.config).eval()
    accelerate.cpu_offload(other, execution_device=torch.device("cpu"))
    with pytest.raises(UserError, match="other weights"), steer(other, experts, 25):
        pass


def test_weights_that_are_tied_hash_alike_as_one_tensor_and_as_two(tiny_model: Path) -> None:
    """As with the head and the embedding on two devices."""
    tied, apart = (load_model(str(tiny_model), device="cpu").model for _ in range(2))
    apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight.detach().clone())  # type: ignore[union-attr]
    assert len(list(apart.named_parameters())) == len(list(tied.named_parameters())) + 1
    assert weights_hash(type(apart)(apart.config)) != weights_hash(tied)
    assert weights_hash(copy.deepcopy(apart)) == weights_hash(tied)  # of a model that was not hashed when it was loaded


def test_blocks_follow_each_other_and_layers_are_chosen_among(mined: Path) -> None:
    experts = Experts.load(mined)["animal"]
    blocks = [chosen_experts(experts, Steering(10, block=block)) for block in (1, 2, 3, 4)]
    assert [each for block in blocks for each in block] == list(experts)
    own = chosen_experts(experts, Steering(5, layers=(1,)))
    assert list(own) == [each for each in experts if ".h.1." in each.hookpoint][:5]
    with pytest.raises(UserError, match=r"k is 10 and block is 5: 'animal' has 40 experts .* but 50 are needed"):
        chosen_experts(experts, Steering(10, block=5))
    with pytest.raises(UserError, match="has 0 experts in layers 7"):
        chosen_experts(experts, Steering(1, layers=(7,)))


def test_controls_are_random_and_not_experts(mined: Path) -> None:
    index = Experts.load(mined)
    for name in index:
        best = {each.unit for each in index[name]}
        random, matched = index.units(name, "random"), index.units(name, "matched")
        for control in (random, matched):
            units = [each.unit for each in control]
            assert len(set(units)) == len(units) == 40
            assert not best & set(units)
        assert [each.hookpoint for each in matched] == [each.hookpoint for each in index[name]]
        assert len({each.hookpoint for each in random}) > 4
        assert min(each.ap for each in index[name]) >= max(each.ap for each in [*random, *matched])
    assert [each.unit for each in index.units("animal", "random")] != [
        each.unit for each in index.units("tool", "random")
    ]


@pytest.mark.parametrize("wrong, message", [
    (lambda: Steering(-1), "k is -1"),
    (lambda: Steering(1, strength=1.5), "strength is 1.5"),
    (lambda: Steering(1, strength=float("nan")), "strength is nan"),
    (lambda: Steering(1, "max"), "forcing is 'max'"),  # type: ignore[arg-type]
    (lambda: Steering(1, tokens="first"), "tokens is 'first'"),  # type: ignore[arg-type]
    (lambda: Steering(1, block=0), "block is 0"),
    (lambda: Steering(1, layers=()), "layers is"),
])  # fmt: skip
def test_impossible_steering_is_refused(wrong: Callable[[], Steering], message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong()


def test_a_unit_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="no value to set for"):
        assign([concept("a", expert(1, MLP, 3, float("nan")))], Steering(1))
