"""Sampling, stopping and streaming for transformers' `generate`, with settings per row of a batch.

Knows no experts. A row is sampled by its request's seed alone, so a text does not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class RowSampler(LogitsProcessor):
    """Samples the next token of each row and masks all others.

    Uses the Gumbel-max trick: the argmax of log p + noise is distributed as p. The noise is drawn for the candidate
    tokens only, on the CPU, from a generator per request.
    """

    def __init__(
        self,
        temperatures: Sequence[float],
        top_ks: Sequence[int],
        top_ps: Sequence[float],
        requests: Sequence[tuple[int, int]],
    ) -> None:
        """Prepare for a batch.

        Args:
            temperatures, top_ks, top_ps: per row; temperature 0 takes the likeliest token.
            requests: each request's seed and number of rows, in the order of the rows.
        """
        self.greedy = torch.tensor([temperature == 0 for temperature in temperatures])
        self.temperatures = torch.tensor([temperature or 1.0 for temperature in temperatures])[:, None]
        self.top_ks = list(top_ks)
        # Rounding makes the probabilities sum to slightly less than 1; top_p = 1 must keep all tokens.
        bounds = [top_p if top_p < 1 else torch.inf for top_p in top_ps]
        self.top_ps = torch.tensor(bounds)[:, None] if min(top_ps) < 1 else None
        self.counts = [count for _, count in requests]
        self.generators = [torch.Generator().manual_seed(seed) for seed, _ in requests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(rows, vocabulary) scores → 0 for the sampled token, minus infinity for all others."""
        vocabulary = scores.shape[-1]
        widths = [min(top_k or vocabulary, vocabulary) for top_k in self.top_ks]
        device = scores.device
        scaled = scores.float() / self.temperatures.to(device)
        candidates, tokens = scaled.topk(max(widths), dim=-1)
        if len(set(widths)) > 1:
            beyond = torch.arange(max(widths), device=device) >= torch.tensor(widths, device=device)[:, None]
            candidates = candidates.masked_fill(beyond, -torch.inf)
        if self.top_ps is not None:
            shares = candidates.softmax(-1)
            before = shares.cumsum(-1) - shares
            candidates = candidates.masked_fill(before >= self.top_ps.to(device), -torch.inf)
        choice = (candidates + self._noise(widths).to(device)).argmax(-1)
        # Candidates are sorted, the likeliest first.
        choice = torch.where(self.greedy.to(device), 0, choice)
        drawn = tokens.gather(1, choice[:, None])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)

    def _noise(self, widths: Sequence[int]) -> torch.Tensor:
        """(rows, candidates) Gumbel noise; 0 beyond a row's number of candidates."""
        noise = torch.zeros(len(widths), max(widths))
        first = 0
        for count, generator in zip(self.counts, self.generators, strict=True):
            own = torch.empty(count, widths[first]).exponential_(generator=generator)
            noise[first : first + count, : widths[first]] = -own.log()
            first += count
        return noise


class Stopper(StoppingCriteria):
    """Ends each row at its own length, or when its request is stopped."""

    def __init__(
        self, lengths: Sequence[int], prompt: int, owners: Sequence[int], stopped: Callable[[int], bool]
    ) -> None:
        """Prepare for a batch.

        Args:
            lengths: maximum number of new tokens per row.
            prompt: length of every row's prompt in tokens, padding included.
            owners: the request of each row.
            stopped: whether a request should end.
        """
        self.lengths = torch.tensor(list(lengths))
        self.prompt = prompt
        self.owners = list(owners)
        self.stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """(rows,) whether each row is done."""
        stopped = {owner: self.stopped(owner) for owner in dict.fromkeys(self.owners)}
        done = (input_ids.shape[1] - self.prompt >= self.lengths) | torch.tensor(
            [stopped[owner] for owner in self.owners]
        )
        return done.to(input_ids.device)


class StepStreamer(BaseStreamer):
    """Passes on the next tokens of all rows at each step."""

    def __init__(self, on_step: Callable[[list[int]], None]) -> None:
        self.on_step = on_step
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Receive from `generate` the prompts first, then (rows,) tokens at each step."""
        if self.prompt_seen:
            self.on_step(value.tolist())
        self.prompt_seen = True

    def end(self) -> None:
        """Do nothing: no token is held back."""


class Decoding:
    """Decodes new tokens together with their prompt, since a tokenizer may drop the space that a text begins with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._before: dict[tuple[int, ...], str] = {}

    def added(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """The text that new tokens add to a prompt; special tokens are skipped."""
        key = tuple(prompt)
        if key not in self._before:
            self._before[key] = self._decode(prompt)
        return self._decode([*prompt, *tokens])[len(self._before[key]) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))
