"""The home of `load_model` until 0.1; the cards of published packs still import it from here."""

from expertmine.model.load import load_model as load_model

__all__ = ["load_model"]
