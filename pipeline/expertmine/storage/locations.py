"""Locations of corpora, runs and indexes: local folders, or URLs of an object store such as ``s3://bucket/run``.

Both have the methods of `pathlib.Path`. Where the two differ (renaming, flushing, exclusive creation),
`expertmine.storage.files` hides it. Knows nothing of the files at a location.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeAlias

from typing_extensions import TypeIs
from upath import UPath
from upath.registry import available_implementations

from expertmine.errors import UserError

Location: TypeAlias = Path | UPath
"""A file or folder, local or on an object store."""

EXAMPLE = "s3://bucket/folder"
_ONE_SLASH = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
_CLIENT: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}
"""Settings of clients. `expertmine.storage.files` and s3fs both retry requests; a third retry inside theirs would
multiply the time until a failure is reported. No client caches listings: other processes write there too."""
_REMEDY = "for s3, `pip install 'expertmine[s3]'`"


def location(text: str | Path) -> Location:
    """Parse a location from a user's text: a path, or a URL of any protocol that fsspec knows.

    Credentials are those that the store's library finds by itself (environment, profile, role of the machine); in the
    URL they would be printed and written to files.

    Raises:
        UserError: fsspec does not know the protocol, the URL holds credentials or names no bucket, or the protocol's
            library is not installed.
    """
    protocol, separator, rest = str(text).partition("://")
    if not separator:
        if (slip := _ONE_SLASH.match(str(text))) and slip[1] in available_implementations(fallback=True):
            raise UserError(f"{text}: a slash is missing; expected a path, or a URL such as {EXAMPLE}")
        return Path(text)
    if protocol == "file":
        return Path(rest)
    bucket, _, _ = rest.partition("/")
    if "@" in bucket:
        raise UserError(
            f"{protocol}://…@{bucket.rpartition('@')[2]}: holds credentials; remove them from the URL and set them in "
            "the environment or a profile, where the store's library looks for them"
        )
    if protocol not in available_implementations(fallback=True):
        raise UserError(f"{text}: fsspec knows no protocol {protocol!r}; expected a path, or a URL such as {EXAMPLE}")
    if set(rest) & set("*?["):
        raise UserError(f"{text}: holds *, ? or [, which are wildcards on an object store; choose a name without them")
    if not bucket:
        raise UserError(f"{text}: names no bucket; expected something like {EXAMPLE}")
    try:
        found: UPath = UPath(str(text).rstrip("/"), **_CLIENT.get(protocol, {}), use_listings_cache=False)
        _ = found.fs
    except ImportError as error:
        raise UserError(f"{text}: {protocol} needs a library that is not installed ({error}); {_REMEDY}") from error
    return found


def is_remote(where: Location) -> TypeIs[UPath]:
    """Return whether a location is on an object store: no rename, no folders, every request a round trip."""
    return not isinstance(where, Path)


def same(one: Location, other: Location) -> bool:
    """Return whether two locations are the same, also through links or other spellings."""
    return str(one.resolve()) == str(other.resolve())


def absolute(where: Location) -> Location:
    """Return the location as a path that does not depend on the working folder."""
    return where.absolute() if isinstance(where, Path) else where
