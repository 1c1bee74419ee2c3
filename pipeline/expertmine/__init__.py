"""Find the expert units of concepts in a transformer language model, and steer generation with them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expertmine.errors import UserError as UserError
    from expertmine.index.experts import Experts as Experts
    from expertmine.model.load import load_model as load_model
    from expertmine.steering.assignment import Steering as Steering
    from expertmine.steering.interventions import Steered as Steered
    from expertmine.steering.interventions import steer as steer
    from expertmine.steering.interventions import steer_rows as steer_rows

_HOME = {
    "Experts": "index.experts",
    "Steered": "steering.interventions",
    "Steering": "steering.assignment",
    "UserError": "errors",
    "load_model": "model.load",
    "steer": "steering.interventions",
    "steer_rows": "steering.interventions",
}
__all__ = ["Experts", "Steered", "Steering", "UserError", "load_model", "steer", "steer_rows"]


def __getattr__(name: str) -> Any:
    """Import on first use: scoring workers need no torch, readers of an index no model."""
    if name in _HOME:
        return getattr(import_module(f"expertmine.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
