"""Any name as one component of a path, safely: different names never become the same file."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

_UNSAFE = frozenset('%/\\:*?"<>|')
"""Characters that some file system reads as something else than a part of a name; ``%`` begins an escape."""


_LONGEST = 150
"""Bytes of a file name that are kept as they are; file systems end at 255."""


def file_name(name: str) -> str:
    """A name as one component of a path, whatever is in it; different names never become the same one.

    Letters, digits and most signs stay. What has a meaning in paths (slashes, a leading dot) and what cannot be seen
    becomes ``%`` and its bytes, as in addresses of the web; a name too long for a file system ends in its hash.

    >>> file_name("bird.n.01"), file_name("../etc"), file_name("a/b")
    ('bird.n.01', '%2E.%2Fetc', 'a%2Fb')
    """
    safe = "".join(
        _escaped(letter)
        if letter in _UNSAFE or not letter.isprintable() or (letter in ". " and at in (0, len(name) - 1))
        else letter
        for at, letter in enumerate(name)
    )
    return _no_longer(safe, name)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Each name as a component of a path; different ones differ on file systems that ignore case, or accents' form."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(names):
        alike[_folded(name)].append(name)
    return {name: file_name(name) if len(same) == 1 else _spelled_out(name) for same in alike.values() for name in same}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _spelled_out(name: str) -> str:
    """A name with everything escaped that a file system could fold: all but small Latin letters, digits, ``-._``."""
    plain = "abcdefghijklmnopqrstuvwxyz0123456789-_."
    safe = "".join(
        letter if letter in plain and not (letter == "." and at in (0, len(name) - 1)) else _escaped(letter)
        for at, letter in enumerate(name)
    )
    return _no_longer(safe, name)


def _escaped(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))


def _no_longer(safe: str, name: str) -> str:
    """A component that a file system takes; no escape begins with ``%.`` or ``%em``, so these are nobody else's."""
    if not safe:
        return "%empty"
    content = safe.encode()
    if len(content) <= _LONGEST:
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{content[:_LONGEST].decode(errors='ignore')}%.{digest[:32]}"
