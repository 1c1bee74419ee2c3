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
    """The concepts and the steering of one text of a batch."""

    concepts: tuple[ConceptExperts, ...]
    steering: Steering

    @cached_property
    def assignment(self) -> Assignment:
        """The values to set; computed once for all texts that share this object.

        Raises:
            UserError: k out of range, or the run did not keep a unit's value.
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
    """While open, set the k best experts of one or several concepts to their forcing values: do(c, k).

    In a mixture of experts, a unit is set at the tokens routed to its expert; in a module that is called several times
    per pass, at the call that the unit belongs to. The hooks are removed on leaving, also after an exception, and the
    model then computes what it did before.

    Args:
        experts: of a concept (``experts["bird.n.01"]``), of several, or controls (``experts.units(name, "random")``).
        k: experts to set per concept; 0 changes nothing.
        forcing, strength, tokens, layers, block, conflicts: see `expertmine.steering.assignment.Steering`.
        check: compare the model's weights with the weights that were mined.

    Raises:
        UserError: another model, a value out of range, or a module that a pass bypasses.
    """
    concepts = (experts,) if isinstance(experts, ConceptExperts) else tuple(experts)
    chosen_layers = None if layers is None else tuple(layers)
    steering = Steering(k, forcing, strength, tokens, chosen_layers, block, conflicts)
    with steer_rows(model, [Steered(concepts, steering)], check):
        yield


@contextmanager
def steer_rows(model: PreTrainedModel, rows: Sequence[Steered | None], check: bool = True) -> Iterator[None]:
    """While open, steer each text of a batch with its own settings; None leaves a text as it is.

    A batch may have several consecutive texts per row, as `generate` makes for beams and ``num_return_sequences``.

    Raises:
        UserError: as in `steer`; in a pass, if the size of its batch is not a multiple of the rows.
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
    """Moves chosen channels of a hookpoint's response towards fixed values, which may differ by row of a batch."""

    def __init__(self, name: str, settings: Sequence[tuple[Assignment, Steering]]) -> None:
        self.name = name
        channels = sorted({channel for assignment, _ in settings for channel in assignment.get(name, ())})
        self.channels = torch.tensor(channels)
        by_row = [assignment.get(name, {}) for assignment, _ in settings]
        self.chosen = torch.tensor([[channel in row for channel in channels] for row in by_row])
        self.values = torch.tensor([[row.get(channel, 0.0) for channel in channels] for row in by_row])
        strengths = [steering.strength for _, steering in settings]
        self.strengths = None if set(strengths) == {1.0} else torch.tensor(strengths)[:, None]
        at_last = [steering.tokens == "last" for _, steering in settings]
        self.only_last = torch.tensor(at_last) if any(at_last) else None
        self.alike = len(settings) == 1 and self.strengths is None and self.only_last is None
        """One value per channel for all tokens of all texts, at full strength."""
        self._placed: _Placed | None = None
        self._spread: tuple[torch.Size, torch.Tensor] | None = None

    def __call__(self, response: torch.Tensor, where: Where) -> torch.Tensor:
        """Response (…, channels) with the chosen channels moved; the input is changed only if it is owned."""
        placed = self._placed
        if placed is None or placed.dtype is not response.dtype or placed.device != response.device:
            placed, self._spread = self._place(response), None
            self._placed = placed
        if not self.alike:
            moved = self._moved(response.index_select(-1, placed.channels), placed, where)
        elif self._spread is not None and self._spread[0] == response.shape:
            moved = self._spread[1]  # expanding again would take a third of this hook's time per token
        else:
            moved = placed.values.expand(*response.shape[:-1], -1)
            self._spread = response.shape, moved
        if where.owned:
            return response.index_copy_(-1, placed.channels, moved)
        return response.index_copy(-1, placed.channels, moved)

    def _moved(self, own: torch.Tensor, placed: _Placed, where: Where) -> torch.Tensor:
        """New responses (…, set channels) of the units that some row sets."""
        rows = _Rows(own, where, len(self.values))
        values, chosen = rows.each(placed.values), rows.each(placed.chosen)
        if placed.only_last is not None:
            if where.current is None:
                raise UserError(
                    f"{self.name!r} is to be set at the last token of each text, but this pass does not run over texts"
                )
            reached = where.current.last(own.device) | ~rows.by_text(placed.only_last)[:, None]
            chosen = chosen & rows.by_token(reached)[..., None]
        if placed.strengths is not None:
            values = torch.lerp(own, values.expand_as(own), rows.each(placed.strengths))
        return torch.where(chosen, values, own)

    def _place(self, response: torch.Tensor) -> _Placed:
        """The setting's tensors on the device and in the type of the response."""
        if response.shape[-1] <= self.channels[-1]:
            raise UserError(
                f"hookpoint {self.name!r} has {response.shape[-1]} channels, but channel {self.channels[-1]} is to be "
                "set; these experts belong to another model"
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
    """A setting's tensors on the model's device; all but the channels have one line per row."""

    dtype: torch.dtype
    device: torch.device
    channels: torch.Tensor
    chosen: torch.Tensor
    values: torch.Tensor
    strengths: torch.Tensor | None
    only_last: torch.Tensor | None


class _Rows:
    """Expands tensors of rows to the layout of a response: by texts, by tokens, or by tokens routed to an expert."""

    def __init__(self, response: torch.Tensor, where: Where, rows: int) -> None:
        self.where, self.rows = where, rows
        self.by_tokens_alone = response.ndim == 2
        batch = where.current.batch if where.current is not None else len(response)
        if batch % rows:
            raise UserError(
                f"the batch has {batch} texts and the steering {rows} rows: expected a multiple of {rows} texts"
            )
        self.texts_per_row = batch // rows

    def by_text(self, each: torch.Tensor) -> torch.Tensor:
        """(rows, …) → (batch, …), or (1, …) if there is one row for all texts."""
        return each if self.rows == 1 else each.repeat_interleave(self.texts_per_row, dim=0)

    def each(self, each: torch.Tensor) -> torch.Tensor:
        """(rows, channels) → a shape that broadcasts with the response."""
        if self.rows == 1:
            return each[0]
        texts = self.by_text(each)
        if not self.by_tokens_alone:
            return texts[:, None]
        return texts[self._text_of_token(texts.device)]

    def by_token(self, each: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) → one value per token of the response."""
        if not self.by_tokens_alone:
            return each
        flat = each.reshape(-1)
        return flat if self.where.routed is None else flat[self.where.routed]

    def _text_of_token(self, device: torch.device) -> torch.Tensor:
        current = self.where.current
        if current is None:
            raise UserError("this pass does not run over texts, so its rows cannot be steered separately")
        if self.where.routed is not None:
            return self.where.routed // current.tokens
        return torch.arange(current.batch * current.tokens, device=device) // current.tokens
