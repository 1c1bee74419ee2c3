from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from support.tiny_models import BUILDERS, save_model
from transformers import PreTrainedModel

from expertmine import Experts, steer
from expertmine.errors import UserError
from expertmine.index.units import ConceptExperts, Expert
from expertmine.model.hookpoints import find_hookpoints
from expertmine.model.hooks import reading
from expertmine.model.load import LoadedModel, load_model
from expertmine.specs.choices import Forcing
from expertmine.steering.assignment import Steering
from expertmine.steering.decoding import RowSampler, Stopper
from expertmine.steering.generation import GenerationRequest, Generator, _Batch
from expertmine.storage.files import sha256_file


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
        # Token 0 is the padding token of some models: its embedding is 0, and so is an expert's output for it.
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


def test_a_tuples_first_element_is_set_and_the_rest_passed_on() -> None:
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


def test_an_encoder_can_be_mined_but_cannot_generate(mined: Path, tmp_path: Path) -> None:
    shutil.copytree(mined / "experts", tmp_path / "experts")
    loaded = load_model(str(save_model("bert", tmp_path / "model")))
    metadata = json.loads((tmp_path / "experts" / "index.json").read_text())
    metadata["model"] = asdict(loaded.identity)
    (tmp_path / "experts" / "index.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match="BertForMaskedLM, which cannot generate text"):
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
    edit_json(folder / "index.json", lambda metadata: metadata.update(format=99))
    with pytest.raises(UserError, match="not an expert index of format"):
        Experts.load(folder)


def test_a_run_without_an_index_says_what_to_do(planned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no expert index yet; complete `expertmine mine"):
        Experts.load(planned)
    with pytest.raises(UserError, match="no such file"):
        Experts.load(tmp_path)


@pytest.fixture(scope="module")
def generator(mined: Path) -> Generator:
    return Generator(mined, "cpu")


def test_generation_is_seeded_and_steering_changes_it(generator: Generator) -> None:
    request = GenerationRequest(("animal",), Steering(40), prompt="the big", count=3, max_new_tokens=8)
    first = generator(request)
    assert len(first) == 3 and len(set(first)) > 1
    assert generator(request) == first
    assert generator(replace(request, seed=1)) != first
    unsteered = generator(replace(request, steering=Steering(0)))
    assert unsteered == generator(replace(request, concepts=()))
    assert unsteered != first


@pytest.mark.parametrize("k", [0, 20])
def test_the_likeliest_tokens_are_those_of_generate_by_hand(
    k: int, generator: Generator, loaded: LoadedModel, experts: Experts
) -> None:
    request = GenerationRequest(("tool",), Steering(k), prompt="a", max_new_tokens=6, temperature=0)
    ids = torch.tensor([loaded.tokenizer("a")["input_ids"]])
    with steer(loaded.model, experts["tool"], k=k), torch.no_grad():
        output = loaded.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6
        )
    whole = loaded.tokenizer.decode(output[0], skip_special_tokens=True)
    assert generator(request) == [whole[len(loaded.tokenizer.decode(ids[0], skip_special_tokens=True)) :]]


MIXED = [
    GenerationRequest(("animal",), Steering(30), prompt="the big", count=2, max_new_tokens=7, seed=4),
    GenerationRequest((), prompt="a hammer made of steel and", count=1, max_new_tokens=5, temperature=0),
    GenerationRequest(("tool",), Steering(12, "p90", 0.5, "last"), max_new_tokens=9, top_k=0, top_p=0.9),
    GenerationRequest(("tool", "animal"), Steering(3, conflicts="mean"), prompt="the", count=2, max_new_tokens=1),
    GenerationRequest(("animal",), Steering(10), units="random", prompt="a saw", temperature=0.3, max_new_tokens=4),
]


def test_a_mixed_batch_writes_what_each_request_writes_alone(generator: Generator) -> None:
    """Different concepts, k, prompts of different lengths, and settings of sampling in one batch."""
    together = generator.write(MIXED)
    assert together == [generator(request) for request in MIXED]
    assert [len(texts) for texts in together] == [request.count for request in MIXED]


def test_pieces_of_a_stream_join_to_what_is_written(generator: Generator) -> None:
    expected = generator.write(MIXED)
    texts = [[""] * request.count for request in MIXED]
    tokens, ended = [[0] * request.count for request in MIXED], set()
    for piece in generator.stream(MIXED):
        assert (piece.request, piece.row) not in ended
        texts[piece.request][piece.row] += piece.text
        tokens[piece.request][piece.row] += piece.tokens
        if piece.finished is not None:
            ended.add((piece.request, piece.row))
            full = tokens[piece.request][piece.row] == MIXED[piece.request].max_new_tokens
            assert full if piece.finished == "length" else not full
    assert texts == expected
    assert len(ended) == sum(request.count for request in MIXED)


def test_a_stopped_request_ends_and_others_go_on(generator: Generator) -> None:
    long = GenerationRequest(prompt="the", max_new_tokens=30, temperature=0)
    seen = []
    pieces = generator.stream([long, replace(long, prompt="a dog")], lambda request: request == 0 and len(seen) >= 6)
    for piece in pieces:
        seen.append(piece)
    stopped = [piece for piece in seen if piece.request == 0]
    assert len(stopped) < 30 and all(piece.finished is None for piece in stopped)
    assert sum(piece.tokens for piece in seen if piece.request == 1) == 30


def test_closing_a_stream_ends_its_batch_and_takes_the_hooks_away(generator: Generator) -> None:
    request = GenerationRequest(("animal",), Steering(10), prompt="the", max_new_tokens=40)
    pieces = generator.stream([request])
    next(pieces)
    assert any(module._forward_hooks for module in generator.loaded.model.modules())
    pieces.close()  # type: ignore[attr-defined]
    assert not any(module._forward_hooks for module in generator.loaded.model.modules())
    assert generator(request) == generator(request)


def test_samples_have_the_models_distribution(generator: Generator, loaded: LoadedModel) -> None:
    """Frequencies of the first token among many draws, against softmax over the kept tokens."""
    ids = torch.tensor([loaded.tokenizer("the")["input_ids"]])
    with torch.no_grad():
        logits = loaded.model(ids).logits[0, -1] / 0.7
    kept = logits.topk(8)
    expected = torch.zeros_like(logits).scatter(0, kept.indices, kept.values.softmax(0))
    sampler = RowSampler([0.7] * 20000, [8] * 20000, [1.0] * 20000, [(5, 20000)])
    drawn = sampler(ids, (logits * 0.7).expand(20000, -1)).argmax(-1)
    found = torch.bincount(drawn, minlength=len(logits)) / 20000
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 4 * (expected * (1 - expected) / 20000).sqrt().max()


def test_each_row_chooses_among_its_own_number_of_tokens() -> None:
    """With equal scores every candidate occurs; one row with top_p and one without."""
    scores = torch.zeros(3000, 50)
    sampler = RowSampler([1.0] * 3000, [3] * 1000 + [0] * 2000, [1.0] * 2000 + [0.2] * 1000, [(0, 1000), (1, 2000)])
    drawn = sampler(scores, scores).argmax(-1)
    assert [len(part.unique()) for part in drawn.split(1000)] == [3, 50, 10]


def test_a_row_is_done_at_its_own_length_or_when_its_request_is_stopped() -> None:
    stopper = Stopper([2, 5, 5], 4, [0, 0, 1], lambda request: request == 1)
    ids = torch.zeros(3, 6, dtype=torch.long)
    assert stopper(ids, ids).tolist() == [True, False, True]


@pytest.fixture(scope="module")
def writer(mined: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """The embedded model, which ends its texts; without experts of its own."""
    folder = Path(shutil.copytree(mined / "experts", tmp_path_factory.mktemp("writer") / "experts"))
    metadata = json.loads((folder / "index.json").read_text())
    metadata["model"] = asdict(load_model("embedded", device="cpu").identity)
    (folder / "index.json").write_text(json.dumps(metadata))
    return Generator(folder, "cpu")


TEXTS = [
    GenerationRequest(prompt=prompt, count=4, seed=seed, top_k=top_k, max_new_tokens=length)
    for seed, (prompt, top_k, length) in enumerate(
        [("", 10, 40), ("a kind of", 5, 25), ("the", 0, 7), ("a small bird", 3, 30)]
    )
]


def test_texts_that_end_by_themselves_end_there(writer: Generator) -> None:
    """Together, alone and as a stream: nothing of what fills a finished row up."""
    together = writer.write(TEXTS)
    assert together == [writer(request) for request in TEXTS]
    streamed = [[""] * request.count for request in TEXTS]
    tokens = [[0] * request.count for request in TEXTS]
    why = {}
    for piece in writer.stream(TEXTS):
        streamed[piece.request][piece.row] += piece.text
        tokens[piece.request][piece.row] += piece.tokens
        if piece.finished:
            why[piece.request, piece.row] = piece.finished
    assert streamed == together
    assert set(why.values()) == {"stop", "length"} and len(why) == 16
    for (request, row), reason in why.items():
        assert (tokens[request][row] == TEXTS[request].max_new_tokens) == (reason == "length")
        (ids,) = (writer.loaded.tokenizer(together[request][row])["input_ids"],)
        assert 0 not in ids[1:]


def test_the_models_own_generation_settings_change_nothing(writer: Generator) -> None:
    """Checkpoints have generation settings of their own; the request's settings apply all the same."""
    expected = writer.write(TEXTS)
    own = writer.loaded.model.generation_config
    try:
        own.repetition_penalty, own.min_length, own.temperature, own.top_k = 1.7, 20, 0.1, 2  # type: ignore[union-attr]
        assert writer.write(TEXTS) == expected
        assert writer.loaded.model.generation_config is own
    finally:
        own.repetition_penalty, own.min_length, own.temperature, own.top_k = 1.0, 0, 1.0, 50  # type: ignore[union-attr]


def test_half_a_character_at_the_end_is_dropped(writer: Generator) -> None:
    batch = _Batch(writer, [GenerationRequest(prompt="caf")])
    ids = writer.loaded.tokenizer("caf\u00e9\u2014")["input_ids"]
    start = len(writer.loaded.tokenizer("caf")["input_ids"])
    texts = [batch.whole_text(0, ids[start : start + count]) for count in range(1, len(ids) - start + 1)]
    assert "\ufffd" in batch.text(0, ids[start:-1])
    assert texts[-1] == "\u00e9\u2014"
    assert all("\ufffd" not in text or at == 0 for at, text in enumerate(texts))


def test_a_request_whose_units_have_no_value_is_refused_before_the_others_are_written(
    mined: Path, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = Path(shutil.copytree(mined / "experts", tmp_path / "experts"))
    table = pq.read_table(folder / "random.parquet")
    at = table.schema.get_field_index("on_mean")
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.nulls(len(table), pa.float32()).fill_null(float("nan"))),
        folder / "random.parquet",
    )
    metadata = json.loads((folder / "index.json").read_text())
    metadata["checksums"]["random"] = sha256_file(folder / "random.parquet")
    (folder / "index.json").write_text(json.dumps(metadata))
    generator = Generator(folder, "cpu")
    bad = GenerationRequest(("animal",), Steering(5), units="random")
    for refuse in (generator.check, generator, lambda invalid: generator.write([MIXED[0], invalid])):
        with pytest.raises(UserError, match="has no value to set for"):
            refuse(bad)  # type: ignore[operator]
    assert generator.check(replace(bad, steering=Steering(5, "zero"))) > 0


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, -1)
    for top_p, kept in ((0.4, 1), (0.5, 1), (0.79, 2), (0.9, 3), (1.0, 4)):
        sampler = RowSampler([1.0] * 4000, [0] * 4000, [top_p] * 4000, [(0, 4000)])
        assert sampler(scores, scores).argmax(-1).unique().tolist() == list(range(kept))


@pytest.mark.parametrize("changes, message", [
    ({"steering": Steering(41)}, "k is 41: expected 0 to 40"),
    ({"concepts": ("tool", "anmal")}, "did you mean animal"),
    ({"max_new_tokens": 64}, "the model's context has 64"),
])  # fmt: skip
def test_impossible_requests_are_refused(changes: dict[str, object], message: str, generator: Generator) -> None:
    request = replace(GenerationRequest(("animal",), Steering(4), prompt="the"), **changes)  # type: ignore[arg-type]
    for refuse in (generator, generator.check, lambda invalid: list(generator.stream([MIXED[0], invalid]))):
        with pytest.raises(UserError, match=message):
            refuse(request)  # type: ignore[operator]


@pytest.mark.parametrize("changes, message", [
    ({"count": 0}, "count is 0"),
    ({"temperature": -1.0}, r"temperature is -1\.0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"top_p": 0.0}, r"top_p is 0\.0"),
    ({"seed": -1}, "seed is -1"),
    ({"units": "best"}, "units is 'best'"),
])  # fmt: skip
def test_impossible_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenerationRequest(("animal",), **changes)  # type: ignore[arg-type]


def test_a_model_that_has_moved_is_loaded_from_its_new_folder(mined: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(mined / "experts", tmp_path / "index")
    metadata = json.loads((tmp_path / "index" / "index.json").read_text())
    metadata["model"]["name"] = "/nowhere/of/old"
    (tmp_path / "index" / "index.json").write_text(json.dumps(metadata))
    moved = shutil.copytree(tiny_model, tmp_path / "model")
    with pytest.raises(UserError, match="cannot be loaded"):
        Generator(tmp_path / "index", "cpu")
    assert Generator(tmp_path / "index", "cpu", model=str(moved))(MIXED[0]) == Generator(mined, "cpu")(MIXED[0])
    with pytest.raises(UserError, match="other weights"):
        Generator(tmp_path / "index", "cpu", model="embedded")
