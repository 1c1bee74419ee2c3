"""Reports missing packages of a command, and the extra that installs them.

The core has the packages that steering needs; each extra adds packages for some commands, as in pyproject.toml.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from typer.core import TyperGroup

from expertmine.errors import UserError

EXTRAS: dict[str, tuple[str, ...]] = {
    "mine": (
        "bokeh",
        "cryptography",
        "dask",
        "distributed",
        "google_crc32c",
        "numba",
        "numcodecs",
        "prometheus_client",
        "ray",
        "zarr",
    ),
    "evaluate": ("matplotlib", "nltk", "scipy", "sklearn"),
    "report": ("google_crc32c", "jinja2", "markupsafe", "matplotlib", "numcodecs", "scipy", "zarr"),
    "serve": ("fastapi", "pydantic", "starlette", "uvicorn"),
    "s3": ("s3fs",),
    "split": ("accelerate",),
}
"""Modules of each extra's packages."""


class Commands(TyperGroup):
    """The commands; each reports its missing packages."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command of a context (of typer's own click).

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
    """The message for a missing module of a command; None if no extra has the module, which is a bug.

    If several extras have it, takes the extra named like the command, else the first.
    """
    missing = (error.name or "").partition(".")[0]
    extra = next((name for name in (command, *EXTRAS) if missing in EXTRAS.get(name, ())), None)
    if extra is None or find_spec(missing) is not None:
        return None
    names = ", ".join(module for module in EXTRAS[extra] if find_spec(module) is None)
    return f"`expertmine {command}` needs packages that are not installed ({names}): pip install 'expertmine[{extra}]'"
