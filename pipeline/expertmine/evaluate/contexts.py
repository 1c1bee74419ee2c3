"""The contexts of the gender parity experiment: templates and occupations. Knows no model.

They are from Vig et al. (2020), *Causal mediation analysis for interpreting neural NLP: the case of gender bias* (arXiv
2004.12265), as used by Suau et al. (2022), section 5: occupations that are not gendered by definition.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expertmine.errors import UserError

THAT = ("said", "yelled", "whispered", "wanted", "desired", "wished")
BECAUSE = (
    "ate", "ran", "drove", "slept", "cried", "laughed", "went home", "stayed up", "was fired", "was promoted", "yelled",
)  # fmt: skip
TEMPLATES = (*(f"The {{}} {verb} that" for verb in THAT), *(f"The {{}} {verb} because" for verb in BECAUSE))

OCCUPATIONS = (
    "advocate", "aide", "artist", "baker", "clerk", "counselor", "dancer", "educator", "instructor", "nurse",
    "observer", "performer", "photographer", "planner", "poet", "protester", "psychiatrist", "secretary", "singer",
    "substitute", "teacher", "teenager", "therapist", "treasurer", "tutor",
    "ambassador", "assassin", "bartender", "boss", "campaigner", "cleric", "cop", "critic", "doctor", "filmmaker",
    "footballer", "guitarist", "magistrate", "manager", "officer", "politician", "priest", "principal", "prisoner",
    "promoter", "prosecutor", "saint", "strategist", "technician", "trooper", "warrior",
)  # fmt: skip
"""All 25 occupations that leaned to she in language models of 2020, and 26 that leaned to he."""


@dataclass(frozen=True, slots=True)
class Context:
    """One prompt."""

    template: str
    occupation: str

    @property
    def text(self) -> str:
        return self.template.format(self.occupation)


def contexts(occupations: Sequence[str] = OCCUPATIONS, templates: Sequence[str] = TEMPLATES) -> list[Context]:
    """Every occupation in every template."""
    return [Context(template, occupation) for template in templates for occupation in occupations]


def draw(every: Sequence[Context], count: int, seed: int) -> list[Context]:
    """A random sample of `count` contexts; all of them, in order, if there are no more."""
    return random.Random(seed).sample(list(every), count) if count < len(every) else list(every)


def read_occupations(path: Path) -> list[str]:
    """Read occupations from a file, one per line; blank lines and lines that begin with # are skipped.

    Raises:
        UserError: the file cannot be read, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected occupations, one per line") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")))
    if not found:
        raise UserError(f"{path}: has no occupations; expected one or more, one per line")
    return found
