from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from expertmine.errors import UserError
from expertmine.models import (
    EMBEDDED_FOLDER,
    check_weights,
    load_identical,
    load_model,
    tokenise,
    tokenizer_hash,
    weights_hash,
)
from expertmine.taps import reading
from expertmine.units import find_hookpoints


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
def test_gpt2_has_nine_units_a_channel_and_layer(layers: int, width: int) -> None:
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


def test_reading_removes_its_hooks_also_after_an_exception() -> None:
    model = gpt2()
    name = "transformer.h.0.mlp.c_fc"
    with pytest.raises(RuntimeError), reading(model, [name], lambda name, output: None):
        raise RuntimeError
    assert not model.get_submodule(name)._forward_hooks


def test_the_weights_hash_is_that_of_the_checkpoint() -> None:
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


def test_models_that_are_not_there_are_refused(tmp_path: Path) -> None:
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
    with pytest.raises(UserError, match=r"lacks weights, of 'transformer\.h\.1\.mlp\.c_fc\.weight'"):
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


def test_the_embedded_model_is_as_its_card_says() -> None:
    loaded = load_model("embedded")
    assert 4e6 <= loaded.model.num_parameters() <= 8e6
    assert (EMBEDDED_FOLDER / "model.safetensors").stat().st_size <= 14e6
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    assert f"{loaded.model.config.n_layer} layers × {loaded.model.config.n_embd}" in card
