"""Models of many architectures, with two or three layers and random weights, and model folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from expertmine.model.load import EMBEDDED_FOLDER

SIZES = {"vocab_size": 6000, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SAME = {**SIZES, **TOKENS, "intermediate_size": 48, "max_position_embeddings": 66}
GROUPED = {**SAME, "num_key_value_heads": 2}
ENCODERS = frozenset({"bert", "roberta", "albert"})


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=6000, n_positions=64, n_embd=32, n_layer=2, n_head=4, **TOKENS))


def _bloom() -> PreTrainedModel:
    return BloomForCausalLM(BloomConfig(vocab_size=6000, hidden_size=32, n_layer=2, n_head=4, **TOKENS))


def _opt() -> PreTrainedModel:
    return OPTForCausalLM(OPTConfig(**SIZES, **TOKENS, ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32))


def _albert() -> PreTrainedModel:
    return AlbertForMaskedLM(AlbertConfig(**{**SAME, "num_hidden_layers": 3}, embedding_size=16))


def _mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2))


_UNSEEDED: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": _gpt2,
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SAME)),
    "opt": _opt,
    "bloom": _bloom,
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GROUPED, head_dim=8)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SAME)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SAME)),
    "albert": _albert,
    "mixtral": _mixtral,
}


def _seeded(build: Callable[[], PreTrainedModel]) -> Callable[[], PreTrainedModel]:
    def build_seeded() -> PreTrainedModel:
        torch.manual_seed(0)
        return build().eval()

    return build_seeded


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {name: _seeded(build) for name, build in _UNSEEDED.items()}
"""Each builds the same model at every call, with the embedded tokenizer's vocabulary."""


def save_tokenizer(folder: Path, closing: bool = False) -> None:
    """Save the embedded tokenizer into a model folder; with `closing`, it also ends each text with a special token."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED_FOLDER / name, folder)
    if closing:
        path = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        opens, closes = tokenizer.id_to_token(0), tokenizer.id_to_token(1)
        tokenizer.post_processor = TemplateProcessing(
            single=[opens, "$A", closes], pair=None, special_tokens=[(opens, 0), (closes, 1)]
        )
        tokenizer.save(path)


def save_model(name: str, folder: Path) -> Path:
    """Save a model of an architecture; return its folder, as a user would name it."""
    BUILDERS[name]().save_pretrained(folder)
    save_tokenizer(folder, closing=name in ENCODERS)
    return folder
