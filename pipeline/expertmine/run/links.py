"""Looks a run folder over before anything is written to it or believed of it: what lies there must be its own.

A run that came from somebody else may hold a link in place of a folder; what is then written there, or removed, is
somebody's else. Knows nothing of what a run consists of.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from expertmine.errors import UserError
from expertmine.storage.locations import Location, is_remote
from expertmine.storage.untrusted import visible


def require_own(run: Location) -> None:
    """Refuse a run folder with a link that leads out of it, or with what is neither a file nor a folder.

    The run folder itself may be a link, and links may lead from one place of it to another. Nothing is opened or
    followed on the way; an object store has no links.

    Raises:
        UserError: names the first.
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
        raise UserError(f"{run}: cannot be looked over ({error})") from error


def _is_plain(entry: os.DirEntry[str]) -> bool:
    """A file, a folder, or gone meanwhile."""
    plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
    return plain or not os.path.lexists(entry.path)


def _shown(run: Location, home: str, entry: os.DirEntry[str]) -> str:
    return visible(str(run / os.path.relpath(entry.path, home)))


def _entries(top: str) -> Iterator[os.DirEntry[str]]:
    """All that lies in a folder and below; nothing of what a link leads to."""
    folders = [top]
    while folders:
        try:
            found = os.scandir(folders.pop())
        except (FileNotFoundError, NotADirectoryError):  # none yet; or removed meanwhile, by who ends just now
            continue
        with found:
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                yield entry
