"""Loads a model of any architecture with its tokenizer, identifies both by hashes, and tokenises texts.

Reads safetensors only, and never runs code from a model's folder. Knows no corpus and no store.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from expertmine.errors import UserError
from expertmine.specs.identity import ModelIdentity

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded" / "model"

SPLIT = "split"
"""A device name: all visible GPUs, with the model's layers split over them."""

_hashes: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and the identity of both."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity

    @property
    def generates(self) -> bool:
        """Whether it generates text; encoders and models without a head do not."""
        return bool(self.model.can_generate())


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """The tokens of one text."""

    ids: list[int]
    real: list[bool]
    """Whether each token belongs to the text; False for tokens that the tokenizer adds, such as BOS."""

    def without_end(self) -> TokenisedText:
        """Remove the tokens that the tokenizer appends to a text; a text without real tokens becomes empty."""
        end = max((at + 1 for at, each in enumerate(self.real) if each), default=0)
        return TokenisedText(self.ids[:end], self.real[:end])


def load_model(
    name: str, revision: str | None = None, device: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load a causal or masked language model, or a model without a head, as its configuration says.

    Args:
        name: ``embedded``, a local folder, or a Hugging Face model id.
        device: a PyTorch device, or ``split`` for all visible GPUs; None for a GPU if there is one, else the CPU.
        dtype: type of the weights in memory.

    Raises:
        UserError: there is no such model, it has no safetensors, it needs remote code, it is an encoder-decoder, or it
            does not fit the GPUs that it is split over.
    """
    source = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    if device == SPLIT and importlib.util.find_spec("accelerate") is None:
        raise UserError(
            "device `split` needs the package accelerate: install `expertmine[split]`, or give each actor one GPU"
        )
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"model {name!r} is an encoder-decoder ({config.model_type}); expected an encoder or a decoder"
            )
        loaded: Any = auto_class(config).from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Other implementations compute all experts at once, so that no single expert's map can be intercepted.
            experts_implementation="eager",
            device_map="auto" if device == SPLIT else None,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"model {name!r} cannot be loaded: {reason} "
            "Expected `embedded`, a folder with config.json, safetensors and tokenizer, or a Hugging Face model id."
        ) from error
    model, report = loaded
    absent = [*report["missing_keys"], *report["mismatched_keys"]]
    if absent and all(str(key).startswith("pooler.") for key in absent):
        # A pooler comes after all blocks and is not needed; a random one would change the hash at every load.
        model.pooler = None
        absent = []
    if absent:
        raise UserError(
            f"model {name!r} lacks weights, such as {absent[0]!r}, which would be random; use a complete checkpoint"
        )
    if not tokenizer("a word")["input_ids"]:
        raise UserError(f"model {name!r} has no tokenizer of its own; put its tokenizer.json into the folder")
    assert isinstance(model, PreTrainedModel)
    if device != SPLIT:
        model.to(torch.device(device or default_device()))  # type: ignore[arg-type]
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(f"model {name!r} does not fit the visible GPUs; make more GPUs visible, or load it as bfloat16")
    model.eval()
    identity = ModelIdentity(
        name=name if name == EMBEDDED or not Path(name).exists() else str(Path(name).resolve()),
        revision=revision,
        architecture=type(model).__name__,
        weights=weights_hash(model),
        tokenizer=tokenizer_hash(tokenizer),
    )
    return LoadedModel(model, tokenizer, identity)


def auto_class(config: PreTrainedConfig) -> Any:
    """Choose the class to load with: a language model with its head if the checkpoint has one, else without a head."""
    saved = set(config.architectures or ())
    for auto, classes in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    ):
        if saved & set(classes.values()):
            return auto
    if saved:
        return AutoModel
    # The checkpoint does not name its class; encoders are in both tables, decoders only in the first.
    return AutoModelForMaskedLM if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else AutoModelForCausalLM


def load_identical(
    identity: ModelIdentity, device: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load the model of a plan or an index.

    Raises:
        UserError: the model now has other weights or another tokenizer.
    """
    loaded = load_model(identity.name, identity.revision, device, dtype)
    check_weights(loaded.model, identity)
    if loaded.identity.tokenizer != identity.tokenizer:
        raise UserError(f"the tokenizer of {identity.name!r} has changed since the run was planned; plan a new run")
    return loaded


def check_weights(model: PreTrainedModel, identity: ModelIdentity) -> None:
    """Refuse a model other than the mined one.

    Raises:
        UserError: its weights differ.
    """
    if weights_hash(model) != identity.weights:
        raise UserError(
            f"this {type(model).__name__} has other weights than {identity.name!r}, from which the experts were mined "
            f"(found {weights_hash(model)[:12]}, expected {identity.weights[:12]}), and experts are valid for one "
            "model only; load that model, or mine this one"
        )


def refuse_encoder(loaded: LoadedModel) -> None:
    """Refuse a model that cannot generate text.

    Raises:
        UserError: it is an encoder, or has no head.
    """
    if not loaded.generates:
        raise UserError(
            f"{loaded.identity.name!r} is a {loaded.identity.architecture}, which cannot generate text; its experts "
            "can be read, and set with `steer`, but generation needs a causal language model"
        )


def default_device() -> str:
    """Return ``cuda`` if there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def weights_hash(model: PreTrainedModel) -> str:
    """Return the SHA-256 of the parameters' names, shapes and values rounded to bfloat16.

    The rounding makes a checkpoint's hash the same whether it is loaded as float32 or as bfloat16. Smaller changes are
    not detected, nor changes of buffers. The hash is computed once per model object, so parameters changed in place
    later are not detected either.
    """
    if model not in _hashes:
        digest = hashlib.sha256()
        # Tied parameters count once, even if offloading has duplicated them.
        names = {name for name, _ in model.named_parameters()}
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for name, parameter in sorted(model.named_parameters()):
            if tied.get(name) in names:
                continue
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            rounded = _values(model, name, parameter).to(torch.bfloat16).cpu().contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
        _hashes[model] = digest.hexdigest()
    return _hashes[model]


def _values(model: PreTrainedModel, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter's values, also if accelerate has offloaded them and loads them only while a module runs."""
    if not parameter.is_meta:
        return parameter.detach()
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, own).detach().clone()  # type: ignore[no-any-return]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of a serialised fast tokenizer.

    Raises:
        UserError: it is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json); convert it first")
    # Encoding sets padding and truncation on the backend; they are not part of the tokenizer's identity.
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    digest = hashlib.sha256(backend.to_str().encode()).hexdigest()
    if padding:
        backend.enable_padding(**padding)
    if truncation:
        backend.enable_truncation(**truncation)
    return digest


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None) -> list[TokenisedText]:
    """Tokenise texts, with special tokens, which are marked; cut them to `max_tokens` unless that is None."""
    encoded = tokenizer(
        list(texts),
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [
        TokenisedText(ids, [not special for special in mask])
        for ids, mask in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    ]


def load_tokenizer(identity: ModelIdentity) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a plan's model without the model.

    Raises:
        UserError: it has changed since the run was planned.
    """
    source = str(EMBEDDED_FOLDER) if identity.name == EMBEDDED else identity.name
    tokenizer = AutoTokenizer.from_pretrained(source, revision=identity.revision, trust_remote_code=False)
    if tokenizer_hash(tokenizer) != identity.tokenizer:
        raise UserError(f"the tokenizer of {identity.name!r} has changed since the run was planned; plan a new run")
    return tokenizer
