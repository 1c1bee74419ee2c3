"""Turns any name into one safe path component; different names never become the same file.

Knows strings only; it neither reads nor writes files.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_UNSAFE = frozenset('%/\\:*?"<>|')
"""Characters with a special meaning on some file system; ``%`` starts an escape."""


_MAX_BYTES = 150
"""Longer file names are cut to this many bytes and end in a hash; file systems allow 255."""


def file_name(name: str) -> str:
    """Return a name as one safe path component; different names give different components.

    Letters, digits and most punctuation stay. Characters with a meaning in paths (slashes, a leading dot) and
    unprintable ones are percent-encoded, as in URLs; a name too long for a file system ends in its hash.

    >>> file_name("bird.n.01"), file_name("../etc"), file_name("a/b")
    ('bird.n.01', '%2E.%2Fetc', 'a%2Fb')
    """
    safe = "".join(
        _escaped(letter)
        if letter in _UNSAFE or not letter.isprintable() or (letter in ". " and at in (0, len(name) - 1))
        else letter
        for at, letter in enumerate(name)
    )
    return _shortened(safe, name)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to path components that stay distinct even where a file system ignores case or Unicode form."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        alike[_folded(name)].append(name)
    return {name: file_name(name) if len(same) == 1 else _spelled_out(name) for same in alike.values() for name in same}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _spelled_out(name: str) -> str:
    """Escape everything that a file system could fold: all but lower-case ASCII letters, digits, ``-._``."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_."
    safe = "".join(
        letter if letter in plain and not (letter == "." and at in (0, len(name) - 1)) else _escaped(letter)
        for at, letter in enumerate(name)
    )
    return _shortened(safe, name)


def _escaped(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))


def _shortened(safe: str, name: str) -> str:
    """Limit a component's length. No escape starts with ``%.`` or ``%em``, so the results clash with no other name."""
    if not safe:
        return "%empty"
    content = safe.encode()
    if len(content) <= _MAX_BYTES:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{content[:_MAX_BYTES].decode(errors='ignore')}%.{digest[:32]}"
