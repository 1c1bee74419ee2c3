"""Stage 4: text from the model while its experts of a concept are set. Reads the expert index and the model alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from expertmine.errors import UserError
from expertmine.experts import Experts, Forcing
from expertmine.interventions import steer
from expertmine.models import load_identical, refuse_encoder, tokenise
from expertmine.specs import Pooling


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to write."""

    concept: str | None
    """None leaves the model as it is."""
    k: int = 50
    """How many experts to set."""
    prompt: str = ""
    count: int = 1
    """Continuations of the prompt."""
    max_new_tokens: int = 40
    temperature: float = 1.0
    top_k: int = 10
    """Tokens that sampling chooses among; 0 for all."""
    forcing: Forcing = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.forcing not in get_args(Forcing):
            raise UserError(f"forcing is {self.forcing!r}: expected one of {', '.join(get_args(Forcing))}")
        for name, least in (("k", 0), ("count", 1), ("max_new_tokens", 1), ("top_k", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: expected at least {least}")
        if not self.temperature > 0:
            raise UserError(f"temperature is {self.temperature}: expected more than 0")


@dataclass(frozen=True, slots=True)
class NewGenerator:
    """Makes a `Generator` wherever it is called; travels to an actor in its stead."""

    index: Path
    pooling: Pooling | None = None
    device: str | None = None

    def __call__(self) -> Generator:
        return Generator(self.index, self.device, self.pooling)


class Generator:
    """Holds a model and the expert index; each call writes continuations. A plain class, and a Ray actor's body."""

    def __init__(self, index: Path, device: str | None = None, pooling: Pooling | None = None) -> None:
        """Load the index and the model that it names.

        Args:
            pooling: which of a run's indexes; its first unless given.

        Raises:
            UserError: there is no index, the model is not the one that was mined, or it writes no text.
        """
        self.experts = Experts.load(index, pooling)
        self.loaded = load_identical(self.experts.model, device)
        refuse_encoder(self.loaded)

    def __call__(self, request: GenerationRequest) -> list[str]:
        """The continuations, without the prompt.

        Raises:
            UserError: unknown concept, k out of range, or a prompt that leaves no room.
        """
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        ids = tokenise(tokenizer, [request.prompt], None)[0].ids or [tokenizer.bos_token_id]
        if ids[0] is None:
            raise UserError(f"{self.experts.model.name!r} has no start token; give a prompt")
        context = getattr(model.config, "max_position_embeddings", None)
        if context is not None and len(ids) + request.max_new_tokens > context:
            raise UserError(
                f"the prompt has {len(ids)} tokens and {request.max_new_tokens} are asked for: "
                f"the model reads {context}; shorten the prompt or ask for fewer"
            )
        # An unknown concept or a k out of range is refused before anything is computed.
        experts = self.experts[request.concept] if request.concept is not None else None
        prompt = torch.tensor([ids] * request.count, device=model.device)
        torch.manual_seed(request.seed)
        with torch.inference_mode():
            if experts is None:
                output = self._generate(prompt, request)
            else:
                with steer(model, experts, request.k, request.forcing):
                    output = self._generate(prompt, request)
        texts = tokenizer.batch_decode(output[:, len(ids) :], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    def _generate(self, prompt: torch.Tensor, request: GenerationRequest) -> torch.Tensor:
        """(continuations, tokens): the prompt and what follows."""
        tokenizer = self.loaded.tokenizer
        model: Any = self.loaded.model  # `generate` is typed for a protocol that no model class declares
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=request.temperature,
            top_k=request.top_k,
            max_new_tokens=request.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )
        assert isinstance(output, torch.Tensor)
        return output
