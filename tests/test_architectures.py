"""The whole job on other architectures than GPT-2, with random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from plans import plan_new
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from expertmine.experts import Experts
from expertmine.generate import GenerationRequest, Generator
from expertmine.mine import Cluster, run_all
from expertmine.models import EMBEDDED_FOLDER

SIZES = {"vocab_size": 6000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def llama() -> PreTrainedModel:
    config = LlamaConfig(**SIZES, **TOKENS, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=64)
    return LlamaForCausalLM(config)


def neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, **TOKENS, intermediate_size=48, max_position_embeddings=64))


def opt() -> PreTrainedModel:
    return OPTForCausalLM(OPTConfig(**SIZES, **TOKENS, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32))


@pytest.mark.parametrize("build, units_a_layer", [
    (llama, 32 + 16 + 16 + 32 + 48 + 48 + 32),  # q, k, v, o, gate, up, down
    (neox, 96 + 32 + 48 + 32),  # query_key_value, dense, dense_h_to_4h, dense_4h_to_h
    (opt, 32 + 32 + 32 + 32 + 48 + 32),  # k, v, q, out, fc1, fc2
], ids=["llama", "gpt-neox", "opt"])  # fmt: skip
def test_mining_and_steering(build: object, units_a_layer: int, tiny_corpus: Path, tmp_path: Path) -> None:
    folder, run = tmp_path / "model", tmp_path / "run"
    torch.manual_seed(0)
    build().save_pretrained(folder)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_FOLDER / name, folder)
    plan, _ = plan_new(run, folder, tiny_corpus)
    assert plan.layout.units == 2 * units_a_layer
    run_all(run, ("serial", Cluster()), ("serial", Cluster()), top_k=30)
    best = Experts.load(run)["animal"].top(1)[0]
    assert 0.5 < best.ap <= 1
    generator = Generator(run, "cpu")
    request = GenerationRequest("animal", k=30, prompt="the", count=2, max_new_tokens=8)
    assert generator(request) != generator(GenerationRequest(None, prompt="the", count=2, max_new_tokens=8))
