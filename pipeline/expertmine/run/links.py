"""Checks a run folder for links that lead out of it, before anything in it is written or trusted.

A run that came from someone else may hold a link in place of a folder; a write or removal there would hit files outside
the run. Knows nothing of a run's contents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from expertmine.errors import UserError
from expertmine.storage.locations import Location, is_remote
from expertmine.storage.untrusted import visible


def require_own(run: Location) -> None:
    """Refuse a run folder with a link that leads out of it, or with an entry that is neither a file nor a folder.

    The run folder itself may be a link, and links may lead from one part of it to another. Nothing is opened or
    followed meanwhile; an object store has no links.

    Raises:
        UserError: names the first such entry.
    """
    if is_remote(run):
        return
    home = os.path.realpath(run)
    try:
        for entry in _entries(home):
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if os.path.commonpath([home, target]) != home:
                    raise UserError(
                        f"{_shown(run, home, entry)} is a link that leads out of the run folder, to {visible(target)}; "
                        "what this run writes must stay in it. Remove the link; if it is your own, put the whole run "
                        "folder on that disk, and link the run folder itself"
                    )
            elif not _is_plain(entry):
                raise UserError(
                    f"{_shown(run, home, entry)} is neither a file nor a folder; a run folder holds nothing else. "
                    "Remove it"
                )
    except OSError as error:
        raise UserError(f"{run}: cannot be checked for links ({error})") from error


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, a folder, or gone meanwhile."""
    plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
    return plain or not os.path.lexists(entry.path)


def _shown(run: Location, home: str, entry: os.DirEntry[str]) -> str:
    return visible(str(run / os.path.relpath(entry.path, home)))


def _entries(top: str) -> Iterator[os.DirEntry[str]]:
    """Every entry of a folder and of those below it; links are not followed."""
    folders = [top]
    while folders:
        try:
            found = os.scandir(folders.pop())
        except (FileNotFoundError, NotADirectoryError):  # none yet, or removed meanwhile
            continue
        with found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                yield entry
