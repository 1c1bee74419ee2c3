from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import BUILDERS, SAME, save_model, save_tokenizer
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from expertmine.errors import UserError
from expertmine.model.hookpoints import default_names, find_hookpoints, left_out_experts
from expertmine.model.hooks import reading
from expertmine.model.load import (
    EMBEDDED_FOLDER,
    check_weights,
    load_identical,
    load_model,
    refuse_encoder,
    tokenise,
    tokenizer_hash,
    weights_hash,
)


def gpt2(layers: int = 2, width: int = 32) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=width, n_layer=layers, n_head=2)
    return GPT2LMHeadModel(config).eval()


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("layers, width", [(1, 32), (3, 64)])
def test_gpt2_has_nine_units_per_channel_and_layer(layers: int, width: int) -> None:
    hookpoints = find_hookpoints(gpt2(layers, width))
    assert sum(hookpoint.width for hookpoint in hookpoints) == 9 * width * layers
    names = [hookpoint.name.removeprefix("transformer.h.0.") for hookpoint in hookpoints[:4]]
    assert names == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]


def test_llama_has_its_seven_maps_in_order_of_execution() -> None:
    hookpoints = find_hookpoints(llama())
    names = [hookpoint.name.rpartition(".")[2] for hookpoint in hookpoints[:7]]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert [hookpoint.width for hookpoint in hookpoints[:7]] == [16, 8, 8, 16, 24, 24, 16]


def test_unit_ids_are_contiguous() -> None:
    hookpoints = find_hookpoints(gpt2())
    assert [unit for hookpoint in hookpoints for unit in hookpoint.units] == list(range(9 * 32 * 2))


def test_globs_choose_hookpoints_and_must_match() -> None:
    model = gpt2()
    assert [h.name for h in find_hookpoints(model, ["*.mlp.c_fc"])] == [
        "transformer.h.0.mlp.c_fc",
        "transformer.h.1.mlp.c_fc",
    ]
    with pytest.raises(UserError, match=r"'\*\.mlp\.nope' matches no module"):
        find_hookpoints(model, ["*.mlp.c_fc", "*.mlp.nope"])


def test_modules_that_cannot_be_hooked_are_refused() -> None:
    with pytest.raises(UserError, match=r"lm_head.*does not run"):
        find_hookpoints(gpt2(), ["lm_head"])
    with pytest.raises(UserError, match=r"\(1, 3, 32\) for \(2, 3\) tokens, expected a tensor"):
        find_hookpoints(gpt2(), ["transformer.wpe"])


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "bert", "albert"])
def test_attention_and_mlp_partition_the_default(name: str) -> None:
    model = BUILDERS[name]()
    attention, mlp, both = (find_hookpoints(model, list(p)) for p in (["attention"], ["mlp"], ["mlp", "attention"]))
    assert all("att" in hookpoint.name for hookpoint in attention) and attention
    assert not any("att" in hookpoint.name for hookpoint in mlp) and mlp
    assert both == find_hookpoints(model) == find_hookpoints(model, ["linear"])


def test_residual_is_each_blocks_output() -> None:
    assert [h.name for h in find_hookpoints(gpt2(3), ["residual"])] == [f"transformer.h.{n}" for n in range(3)]
    albert = [h.name.rpartition(".")[2] for h in find_hookpoints(BUILDERS["albert"](), ["residual"])]
    assert albert == ["0#1", "0#2", "0#3"]


def test_a_pattern_that_matches_nothing_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean residual"):
        find_hookpoints(gpt2(), ["residuals"])
    with pytest.raises(UserError, match=r"did you mean .*transformer\.h\.0\.mlp\.c_fc"):
        find_hookpoints(gpt2(), ["transformer.h.0.mlp.cfc"])


def shared_gpt2() -> GPT2LMHeadModel:
    """Both blocks run the first one's MLP."""
    model = gpt2()
    model.transformer.h[1].mlp = model.transformer.h[0].mlp
    return model


def test_a_shared_module_has_units_for_each_run_and_is_found_by_each_of_its_paths() -> None:
    model = shared_gpt2()
    expected = ["transformer.h.0.mlp.c_fc#1", "transformer.h.0.mlp.c_fc#2"]
    assert [h.name for h in find_hookpoints(model, ["transformer.h.1.mlp.c_fc"])] == expected
    assert [h.name for h in find_hookpoints(model, ["*.h.0.mlp.c_fc"])] == expected
    assert sum(h.width for h in find_hookpoints(model)) == 9 * 32 * 2


def test_a_pass_in_which_a_module_does_not_run_as_often_as_before_is_refused() -> None:
    model, ids = gpt2(), torch.tensor([[1, 2, 3]])
    names = [h.name for h in find_hookpoints(model, ["*.mlp.c_fc"])]
    seen: list[str] = []
    with reading(model, names, lambda name, response: seen.append(name)):
        for _ in range(2):
            model.base_model(input_ids=ids)
        assert seen == names * 2
        model.transformer.h[1].mlp = model.transformer.h[0].mlp
        with pytest.raises(UserError, match=r"'transformer\.h\.0\.mlp\.c_fc' ran 2 times in this pass, expected 1"):
            model.base_model(input_ids=ids)


def test_a_module_that_runs_on_some_tokens_only_is_refused() -> None:
    class HalfOfThem(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.cat([hidden[:, :1], self.mlp(hidden[:, 1:].contiguous())], 1)

    model = gpt2()
    model.transformer.h[0].mlp = HalfOfThem(model.transformer.h[0].mlp)
    with pytest.raises(UserError, match=r"c_fc' gives \(2, 2, 128\) for \(2, 3\) tokens"):
        find_hookpoints(model)


def test_the_first_element_of_a_tuple_is_the_response() -> None:
    model, seen = gpt2(), {}
    (hookpoint,) = find_hookpoints(model, ["transformer.h.0.attn"])
    assert hookpoint.width == 32
    with reading(model, [hookpoint.name], seen.__setitem__):
        model.base_model(input_ids=torch.tensor([[1, 2, 3]]))
    assert seen[hookpoint.name].shape == (1, 3, 32)


def test_experts_are_in_order_and_respond_with_0_when_no_token_reaches_them() -> None:
    model, seen = BUILDERS["mixtral"](), {}
    names = [h.name for h in find_hookpoints(model, ["*.0.mlp.experts.*_proj*", "*.1.mlp.experts.down_proj[[]3]"])]
    assert [name.rpartition(".")[2] for name in names[:4]] == [
        "gate_up_proj[0]", "down_proj[0]", "gate_up_proj[1]", "down_proj[1]"
    ]  # fmt: skip
    assert len(names) == 9 and names[-1] == "model.layers.1.mlp.experts.down_proj[3]"
    implementation = model.config._experts_implementation
    with reading(model, names, seen.__setitem__):
        model.base_model(input_ids=torch.tensor([[7]]))
    assert model.config._experts_implementation == implementation
    assert "forward" not in model.get_submodule("model.layers.0.mlp.experts").__dict__
    assert seen.keys() == set(names)
    silent = [name for name in names[:8] if not seen[name].any()]
    assert len(silent) == 4  # one token reaches two experts of four, of two maps each
    assert all(seen[name].shape[0] == 1 for name in names)


def test_experts_without_linear_maps_are_left_out_and_refused_when_named() -> None:
    config = GptOssConfig(**{**SAME, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4})
    model = GptOssForCausalLM(config).eval()
    assert not any("experts" in name for name in default_names(model))
    assert left_out_experts(model) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    with pytest.raises(UserError, match="does not compute by plain linear maps; hook the whole module"):
        find_hookpoints(model, ["*.experts.down_proj*"])
    assert [h.width for h in find_hookpoints(model, ["*.experts"])] == [32, 32]


def test_encoders_load_with_the_head_they_were_saved_with_or_without_one(tmp_path: Path) -> None:
    loaded = load_model(str(save_model("bert", tmp_path / "masked")))
    assert loaded.identity.architecture == "BertForMaskedLM"
    with pytest.raises(UserError, match="cannot generate text"):
        refuse_encoder(loaded)
    half = load_model(str(tmp_path / "masked"), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and half.identity.weights == loaded.identity.weights
    for name, model in {
        "bare": BertModel(BertConfig(**SAME)),
        "without pooler": BertModel(BertConfig(**SAME), add_pooling_layer=False),
        "classifier": BertForSequenceClassification(BertConfig(**SAME)),
    }.items():
        folder = tmp_path / name
        model.save_pretrained(folder)
        save_tokenizer(folder, closing=True)
        loaded = load_model(str(folder))
        assert loaded.identity.architecture == "BertModel"
        assert loaded.identity == load_model(str(folder)).identity
        assert sum(h.width for h in find_hookpoints(loaded.model)) == 2 * (4 * 32 + 48 + 32)


def test_encoder_decoders_and_a_split_without_accelerate_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    T5ForConditionalGeneration(T5Config(vocab_size=6000, d_model=16, d_ff=16, num_layers=1)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"encoder-decoder \(t5\)"):
        load_model(str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package accelerate"):
        load_model("embedded", device="split")


def test_experts_are_loaded_with_the_eager_implementation(tmp_path: Path) -> None:
    loaded = load_model(str(save_model("mixtral", tmp_path)))
    assert loaded.model.config._experts_implementation == "eager"
    assert loaded.generates
    assert load_model(str(tmp_path), dtype=torch.bfloat16).identity.weights == loaded.identity.weights


def test_reading_removes_its_hooks_also_after_an_exception() -> None:
    model = gpt2()
    name = "transformer.h.0.mlp.c_fc"
    with pytest.raises(RuntimeError), reading(model, [name], lambda name, output: None):
        raise RuntimeError
    assert not model.get_submodule(name)._forward_hooks


def test_the_weights_hash_depends_on_the_checkpoint_alone() -> None:
    model = gpt2()
    assert weights_hash(gpt2()) == weights_hash(model)
    assert weights_hash(gpt2().to(torch.bfloat16)) == weights_hash(model)
    other = gpt2()
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight[0, 0] += 0.5
    assert weights_hash(other) != weights_hash(model)


def test_another_model_is_refused(tiny_model: Path) -> None:
    identity = load_model(str(tiny_model)).identity
    load_identical(identity)
    with pytest.raises(UserError, match="other weights"):
        check_weights(gpt2(), identity)


def test_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model("nobody/nothing-of-this-name")


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    torch.save(gpt2().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_model(str(folder))


def test_models_that_would_load_wrongly_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights, such as 'transformer\.h\.1\.mlp\.c_fc\.weight'"):
        load_model(str(folder))
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(folder))
    weights.write_bytes(whole)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"n_embd": 32', '"n_embd": 64'))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(folder))


def test_a_model_without_its_tokenizer_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_model(str(folder))


def test_special_tokens_are_marked_and_encoding_leaves_the_tokenizer_hash_alone() -> None:
    loaded = load_model("embedded")
    before = tokenizer_hash(loaded.tokenizer)
    (text,) = tokenise(loaded.tokenizer, ["a domesticated canid"], None)
    assert text.ids[0] == loaded.tokenizer.bos_token_id
    assert text.real == [False] + [True] * (len(text.ids) - 1)
    (cut,) = tokenise(loaded.tokenizer, ["a domesticated canid " * 50], 8)
    assert len(cut.ids) == 8
    assert tokenizer_hash(loaded.tokenizer) == before == loaded.identity.tokenizer


def test_the_embedded_model_matches_its_card() -> None:
    loaded = load_model("embedded")
    assert 4e6 <= loaded.model.num_parameters() <= 8e6
    assert (EMBEDDED_FOLDER / "model.safetensors").stat().st_size <= 14e6
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    assert f"{loaded.model.config.n_layer} layers × {loaded.model.config.n_embd}" in card
