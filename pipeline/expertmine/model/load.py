"""Load a model of any architecture and its tokenizer, say exactly which they are, and turn texts into tokens.

Safetensors only, and never code from a model's folder. Knows no corpus and no store.
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
"""The device that stands for all visible GPUs, the model's layers spread over them."""

_hashes: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and what identifies both."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity

    @property
    def generates(self) -> bool:
        """Whether it continues text; encoders and models without their head do not."""
        return bool(self.model.can_generate())


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """One text as the model sees it."""

    ids: list[int]
    real: list[bool]
    """Whether a token belongs to the text; False for those that the tokenizer adds, such as BOS."""

    def without_end(self) -> TokenisedText:
        """Without the tokens that the tokenizer puts after a text; a text without tokens of its own has none left."""
        end = max((at + 1 for at, each in enumerate(self.real) if each), default=0)
        return TokenisedText(self.ids[:end], self.real[:end])


def load_model(
    name: str, revision: str | None = None, device: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load a causal language model, a masked one, or a model without a head, as its configuration says.

    Args:
        name: ``embedded``, a local folder, or a Hugging Face model id.
        device: where to; a GPU when there is one, unless given. ``split`` spreads the model over all visible GPUs.
        dtype: of the weights in memory.

    Raises:
        UserError: there is no such model, it has no safetensors, it needs code of its own, it is an encoder-decoder,
            or it does not fit the GPUs that it is split over.
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
            raise UserError(f"model {name!r} is an encoder-decoder ({config.model_type}); expected one or the other")
        loaded: Any = auto_class(config).from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            # The other implementations compute all experts at once, which leaves no map of one expert to see.
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
        # A pooler comes after all blocks; random, it would only make the hash of the weights another each time.
        model.pooler = None
        absent = []
    if absent:
        raise UserError(f"model {name!r} lacks weights, of {absent[0]!r} for one; they would be random numbers")
    if not tokenizer("a word")["input_ids"]:
        raise UserError(f"model {name!r} has no tokenizer of its own; put its tokenizer.json into the folder")
    assert isinstance(model, PreTrainedModel)
    if device != SPLIT:
        model.to(torch.device(device or default_device()))  # type: ignore[arg-type]
    elif any(parameter.is_meta for parameter in model.parameters()):
        raise UserError(f"model {name!r} does not fit the visible GPUs; show it more of them, or load it as bfloat16")
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
    """The class to load with: the head that the checkpoint was saved with when it is a language model's, else none."""
    saved = set(config.architectures or ())
    for auto, classes in (
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    ):
        if saved & set(classes.values()):
            return auto
    if saved:
        return AutoModel
    # Nothing says what it was saved with; encoders are in both tables, decoders in the first alone.
    return AutoModelForMaskedLM if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else AutoModelForCausalLM


def load_identical(
    identity: ModelIdentity, device: str | None = None, dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load the model of a plan or an index again.

    Raises:
        UserError: what is there now has other weights or another tokenizer.
    """
    loaded = load_model(identity.name, identity.revision, device, dtype)
    check_weights(loaded.model, identity)
    if loaded.identity.tokenizer != identity.tokenizer:
        raise UserError(f"the tokenizer of {identity.name!r} has changed since the run was planned; plan a new run")
    return loaded


def check_weights(model: PreTrainedModel, identity: ModelIdentity) -> None:
    """Refuse a model that is not the one that was mined.

    Raises:
        UserError: other weights.
    """
    if weights_hash(model) != identity.weights:
        raise UserError(
            f"this {type(model).__name__} has other weights than {identity.name!r}, which the experts were mined from "
            f"(found {weights_hash(model)[:12]}, expected {identity.weights[:12]}); experts of one model mean nothing "
            "in another: load that model, or mine this one"
        )


def refuse_encoder(loaded: LoadedModel) -> None:
    """Refuse a model that cannot continue text.

    Raises:
        UserError: an encoder, or a model without its head.
    """
    if not loaded.generates:
        raise UserError(
            f"{loaded.identity.name!r} is a {loaded.identity.architecture}, which writes no text; its experts can be "
            "read, and set with `steer`, but generation needs a causal language model"
        )


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over the parameters' names, shapes and values rounded to bfloat16.

    The rounding lets one checkpoint hash alike whether it was loaded as float32 or as bfloat16; changes below it go
    unnoticed, as do those of buffers. It is computed once a model object; parameters changed in place after that go
    unnoticed too.
    """
    if model not in _hashes:
        digest = hashlib.sha256()
        # Parameters that are one and the same count once, also where offloading has made two of them.
        names = {name for name, _ in model.named_parameters()}
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for name, parameter in sorted(model.named_parameters()):
            if tied.get(name) in names:
                continue
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            rounded = _at_hand(model, name, parameter).to(torch.bfloat16).cpu().contiguous()
            digest.update(rounded.view(torch.int16).numpy().tobytes())
        _hashes[model] = digest.hexdigest()
    return _hashes[model]


def _at_hand(model: PreTrainedModel, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's values, also where accelerate keeps them elsewhere and only brings them in for a module's run."""
    if not parameter.is_meta:
        return parameter.detach()
    from accelerate.utils import align_module_device

    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, own).detach().clone()  # type: ignore[no-any-return]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a fast tokenizer's serialisation.

    Raises:
        UserError: it is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is no fast tokenizer (tokenizer.json); convert it first")
    # Encoding sets padding and truncation on the backend; they are not part of what it is.
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
    """Tokens of each text, special ones included and marked; cut to `max_tokens` when given."""
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
    """The tokenizer of a plan's model, without the model.

    Raises:
        UserError: it is not there, or another by now.
    """
    source = str(EMBEDDED_FOLDER) if identity.name == EMBEDDED else identity.name
    tokenizer = AutoTokenizer.from_pretrained(source, revision=identity.revision, trust_remote_code=False)
    if tokenizer_hash(tokenizer) != identity.tokenizer:
        raise UserError(f"the tokenizer of {identity.name!r} has changed since the run was planned; plan a new run")
    return tokenizer
