"""What a command says that lacks packages: which they are, and the extra to install them with.

The core brings what steering needs; each extra what some commands need beside that, as pyproject.toml has it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from typer.core import TyperGroup

from expertmine.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "mine": ("bokeh", "cryptography", "dask", "distributed", "numba", "numcodecs", "prometheus_client", "ray", "zarr"),
    "evaluate": ("matplotlib", "nltk", "scipy", "sklearn"),
    "report": ("jinja2", "markupsafe", "matplotlib", "numcodecs", "scipy", "zarr"),
    "serve": ("fastapi", "pydantic", "starlette", "uvicorn"),
    "s3": ("s3fs",),
    "split": ("accelerate",),
}
"""Modules of the packages that each extra brings."""


class Commands(TyperGroup):
    """The commands, each of which says what it lacks."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of a context, which is of the click that typer brings.

        Raises:
            UserError: a package of an extra is not installed.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            problem = lacking(str(ctx.invoked_subcommand), error)
            if problem is None:
                raise
            raise UserError(problem) from error


def lacking(command: str, error: ModuleNotFoundError) -> str | None:
    """What to install for a command that met a missing module; None if no extra has that, which is a bug.

    Several extras may have it: the one that is named like the command is meant, or else the first.
    """
    missing = (error.name or "").partition(".")[0]
    extra = next((name for name in (command, *EXTRAS) if missing in EXTRAS.get(name, ())), None)
    if extra is None or find_spec(missing) is not None:
        return None
    names = ", ".join(module for module in EXTRAS[extra] if find_spec(module) is None)
    return f"`expertmine {command}` needs packages that are not installed ({names}): pip install 'expertmine[{extra}]'"
