"""Interventions on a model as context managers; do(c, k) of Suau et al. (2022), section 3.

Works on any Hugging Face model of the mined weights, with `generate`, caches, beams and batches. Knows no run folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedModel

from expertmine.errors import UserError
from expertmine.index.units import ConceptExperts
from expertmine.model.hooks import Where, changing
from expertmine.model.load import check_weights
from expertmine.specs.choices import Conflicts, Forcing, Tokens
from expertmine.steering.assignment import Assignment, Steering, assign


@dataclass(frozen=True)
class Steered:
    """What is set for one text of a batch."""

    concepts: tuple[ConceptExperts, ...]
    steering: Steering

    @cached_property
    def assignment(self) -> Assignment:
        """The values; made once for all texts that are steered so.

        Raises:
            UserError: k out of range, or a unit whose value was not kept.
        """
        return assign(self.concepts, self.steering)


@contextmanager
def steer(
    model: PreTrainedModel,
    experts: ConceptExperts | Sequence[ConceptExperts],
    k: int,
    forcing: Forcing = "mean",
    *,
    strength: float = 1.0,
    tokens: Tokens = "all",
    layers: Sequence[int] | None = None,
    block: int = 1,
    conflicts: Conflicts = "best",
    check: bool = True,
) -> Iterator[None]:
    """While open, the k best experts of a concept, or of each of several, are set to their forcing values: do(c, k).

    An expert of a mixture is set at the tokens routed to it; a module that runs several times a pass, at the run that
    the unit belongs to. The hooks are removed on leaving, also after an exception, and the model's outputs are those
    from before.

    Args:
        experts: of a concept (``experts["bird.n.01"]``), of several, or controls (``experts.units(name, "random")``).
        k: how many of each concept; 0 changes nothing.
        forcing, strength, tokens, layers, block, conflicts: see `expertmine.steering.assignment.Steering`.
        check: compare the model's weights with those that were mined.

    Raises:
        UserError: another model, a value out of range, or a module that a pass goes around.
    """
    concepts = (experts,) if isinstance(experts, ConceptExperts) else tuple(experts)
    chosen_layers = None if layers is None else tuple(layers)
    steering = Steering(k, forcing, strength, tokens, chosen_layers, block, conflicts)
    with steer_rows(model, [Steered(concepts, steering)], check):
        yield


@contextmanager
def steer_rows(model: PreTrainedModel, rows: Sequence[Steered | None], check: bool = True) -> Iterator[None]:
    """While open, each text of a batch is steered in its own way; None leaves it as it is.

    A batch may have several texts in a row for each, as `generate` makes them for beams and for
    ``num_return_sequences``: one row is then that of so many texts.

    Raises:
        UserError: as `steer` does; in a pass, when its batch is no multiple of the rows.
    """
    if check:
        for identity in {concept.model for row in rows if row is not None for concept in row.concepts}:
            check_weights(model, identity)
    if all(row is rows[0] for row in rows):
        rows = rows[:1]
    settings = [(row.assignment, row.steering) if row is not None else ({}, Steering()) for row in rows]
    names = dict.fromkeys(name for assignment, _ in settings for name, values in assignment.items() if values)
    with changing(model, {name: _Setting(name, settings) for name in names}):
        yield


class _Setting:
    """Moves chosen channels of a hookpoint's response to fixed values, other ones for each row of a batch."""

    def __init__(self, name: str, settings: Sequence[tuple[Assignment, Steering]]) -> None:
        self.name = name
        channels = sorted({channel for assignment, _ in settings for channel in assignment.get(name, ())})
        self.channels = torch.tensor(channels)
        wishes = [assignment.get(name, {}) for assignment, _ in settings]
        self.chosen = torch.tensor([[channel in wish for channel in channels] for wish in wishes])
        self.values = torch.tensor([[wish.get(channel, 0.0) for channel in channels] for wish in wishes])
        strengths = [steering.strength for _, steering in settings]
        self.strengths = None if set(strengths) == {1.0} else torch.tensor(strengths)[:, None]
        at_last = [steering.tokens == "last" for _, steering in settings]
        self.only_last = torch.tensor(at_last) if any(at_last) else None
        self.alike = len(settings) == 1 and self.strengths is None and self.only_last is None
        """One setting for all tokens of all texts, all the way."""
        self._placed: _Placed | None = None
        self._spread: tuple[torch.Size, torch.Tensor] | None = None

    def __call__(self, response: torch.Tensor, where: Where) -> torch.Tensor:
        """Response (…, channels) with the chosen ones moved; the original stays as it is, unless it is owned."""
        placed = self._placed
        if placed is None or placed.dtype is not response.dtype or placed.device != response.device:
            placed, self._spread = self._place(response), None
            self._placed = placed
        if not self.alike:
            moved = self._moved(response.index_select(-1, placed.channels), placed, where)
        elif self._spread is not None and self._spread[0] == response.shape:
            moved = self._spread[1]  # expanding takes a third of the time that a token costs here
        else:
            moved = placed.values.expand(*response.shape[:-1], -1)
            self._spread = response.shape, moved
        if where.owned:
            return response.index_copy_(-1, placed.channels, moved)
        return response.index_copy(-1, placed.channels, moved)

    def _moved(self, own: torch.Tensor, placed: _Placed, where: Where) -> torch.Tensor:
        """What becomes of the responses (…, set channels) of units that some row sets."""
        rows = _Rows(own, where, len(self.values))
        values, chosen = rows.each(placed.values), rows.each(placed.chosen)
        if placed.only_last is not None:
            if where.current is None:
                raise UserError(f"the pass is over no texts that {self.name!r} could be set at the last token of")
            reached = where.current.last(own.device) | ~rows.by_text(placed.only_last)[:, None]
            chosen = chosen & rows.by_token(reached)[..., None]
        if placed.strengths is not None:
            values = torch.lerp(own, values.expand_as(own), rows.each(placed.strengths))
        return torch.where(chosen, values, own)

    def _place(self, response: torch.Tensor) -> _Placed:
        """The tensors where, and of the type that, the response is."""
        if response.shape[-1] <= self.channels[-1]:
            raise UserError(
                f"hookpoint {self.name!r} has {response.shape[-1]} channels and channel {self.channels[-1]} is to be "
                "set; these experts are of another model"
            )
        device = response.device
        return _Placed(
            response.dtype,
            device,
            self.channels.to(device),
            self.chosen.to(device),
            self.values.to(response),
            None if self.strengths is None else self.strengths.to(response),
            None if self.only_last is None else self.only_last.to(device),
        )


@dataclass(frozen=True, slots=True)
class _Placed:
    """A setting's tensors where the model computes; all but the channels have one line for each row."""

    dtype: torch.dtype
    device: torch.device
    channels: torch.Tensor
    chosen: torch.Tensor
    values: torch.Tensor
    strengths: torch.Tensor | None
    only_last: torch.Tensor | None


class _Rows:
    """Lays out what rows have so that it fits a response: by texts, by tokens, or by tokens routed to an expert."""

    def __init__(self, response: torch.Tensor, where: Where, rows: int) -> None:
        self.where, self.rows = where, rows
        self.by_tokens_alone = response.ndim == 2
        batch = where.current.batch if where.current is not None else len(response)
        if batch % rows:
            raise UserError(f"a batch of {batch} texts was given for {rows} rows of steering: expected a multiple")
        self.texts_a_row = batch // rows

    def by_text(self, each: torch.Tensor) -> torch.Tensor:
        """(rows, …) → (batch, …), or (1, …) where all rows are alike."""
        return each if self.rows == 1 else each.repeat_interleave(self.texts_a_row, dim=0)

    def each(self, each: torch.Tensor) -> torch.Tensor:
        """(rows, channels) → what broadcasts with the response."""
        if self.rows == 1:
            return each[0]
        texts = self.by_text(each)
        if not self.by_tokens_alone:
            return texts[:, None]
        return texts[self._text_of_token(texts.device)]

    def by_token(self, each: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) → one for each token of the response."""
        if not self.by_tokens_alone:
            return each
        flat = each.reshape(-1)
        return flat if self.where.routed is None else flat[self.where.routed]

    def _text_of_token(self, device: torch.device) -> torch.Tensor:
        current = self.where.current
        if current is None:
            raise UserError("the pass is over no texts; its rows cannot be steered each in its own way")
        if self.where.routed is not None:
            return self.where.routed // current.tokens
        return torch.arange(current.batch * current.tokens, device=device) // current.tokens
