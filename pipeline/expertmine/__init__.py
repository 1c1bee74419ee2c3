"""Find the expert units of concepts in a transformer language model, and steer generation with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertmine.experts import Experts as Experts
    from expertmine.interventions import steer as steer

__all__ = ["Experts", "steer"]


def __getattr__(name: str) -> Any:
    """Import on first use: scoring workers need no torch, readers of an index no model."""
    if name == "Experts":
        from expertmine.experts import Experts

        return Experts
    if name == "steer":
        from expertmine.interventions import steer

        return steer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
