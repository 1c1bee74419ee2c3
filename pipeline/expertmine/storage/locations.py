"""Where corpora, runs and indexes lie: a folder of this machine, or one of an object store, such as ``s3://bucket/run``.

Both have the methods of a `pathlib.Path`; what differs (renaming, flushing, creating exclusively) is in
`expertmine.storage.files`.
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
"""A file or folder, here or on an object store."""

EXAMPLE = "s3://bucket/folder"
_ONE_SLASH = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)")
_S3 = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
_CLIENT: dict[str, dict[str, Any]] = {"s3": _S3, "s3a": _S3}
"""Settings of clients. `expertmine.storage.files` and s3fs both retry requests; a third retry inside theirs would
multiply the time until a failure is reported. No client caches listings: other processes write there too."""
_REMEDY = "for s3, `pip install 'expertmine[s3]'`"


def location(text: str | Path) -> Location:
    """A place from what a user wrote: a path, or a URL of any kind that fsspec knows.

    Keys are those that the library of the store finds by itself (environment, profile, role of the machine); one in the
    URL would be printed with it, and kept in files.

    Raises:
        UserError: nobody knows that kind of URL, it holds a user or names no bucket, or a library is not installed.
    """
    protocol, separator, rest = str(text).partition("://")
    if not separator:
        if (slip := _ONE_SLASH.match(str(text))) and slip[1] in available_implementations(fallback=True):
            raise UserError(f"{text}: one slash is missing; expected a path, or a URL such as {EXAMPLE}")
        return Path(text)
    if protocol == "file":
        return Path(rest)
    bucket, _, _ = rest.partition("/")
    if "@" in bucket:
        raise UserError(
            f"{protocol}://…@{bucket.rpartition('@')[2]}: keys do not belong in a URL; give them by the environment "
            "or a profile, as the library of the store expects them"
        )
    if protocol not in available_implementations(fallback=True):
        raise UserError(f"{text}: fsspec knows no protocol {protocol!r}; expected a path, or a URL such as {EXAMPLE}")
    if set(rest) & set("*?["):
        raise UserError(f"{text}: *, ? and [ are patterns to an object store, and mean others; name it otherwise")
    if not bucket:
        raise UserError(f"{text}: names no bucket; expected something like {EXAMPLE}")
    try:
        found: UPath = UPath(str(text).rstrip("/"), **_CLIENT.get(protocol, {}), use_listings_cache=False)
        _ = found.fs
    except ImportError as error:
        raise UserError(f"{text}: {protocol} needs a library that is not installed ({error}); {_REMEDY}") from error
    return found


def is_remote(where: Location) -> TypeIs[UPath]:
    """Whether a place is on an object store: no renaming, no folders, every request a round trip."""
    return not isinstance(where, Path)


def same(one: Location, other: Location) -> bool:
    """Whether two places are one, by links and other ways of writing it as well."""
    return str(one.resolve()) == str(other.resolve())


def absolute(where: Location) -> Location:
    """The same place as another working folder sees it."""
    return where.absolute() if isinstance(where, Path) else where
