"""Expert indexes on the Hugging Face hub: fetch one, publish one. The only caller of huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expertmine.errors import UserError

FETCHED = ("*.json", "*.parquet", "*.md")
"""Files to fetch from a repository: the parts of an index, and no code."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_ADDRESS = re.compile(rf"(?P<scheme>hf:/{{1,2}})?(?P<id>{_ID.pattern})(?:@(?P<revision>[\w./-]+))?", re.ASCII)
"""`pathlib.Path` collapses two slashes into one, so ``hf:/user/repo`` is accepted too."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A hub repository at a revision."""

    id: str
    """``user/name``."""
    revision: str | None
    """Branch, tag or commit; None for its main branch."""


def repository(text: str) -> Repository | None:
    """The repository named by ``user/name`` or ``hf://user/name``, optionally with ``@revision``; else None.

    >>> repository("hf://ann/birds@v2")
    Repository(id='ann/birds', revision='v2')
    >>> repository("/tmp/run") is None
    True
    """
    found = _ADDRESS.fullmatch(text)
    return Repository(found["id"], found["revision"]) if found else None


def require_id(text: str) -> None:
    """Check the name of a repository to publish to.

    Raises:
        UserError: the text is not a repository name.
    """
    if not _ID.fullmatch(text):
        raise UserError(f"{text!r} is not a hub repository; expected user/name")


def fetch(source: Repository) -> Path:
    """Download a repository's expert index, unless it is cached; returns its folder in the local cache.

    Raises:
        UserError: there is no such repository or revision, or the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # what its connections raise

    try:
        folder = huggingface_hub.snapshot_download(
            source.id, revision=source.revision, allow_patterns=list(FETCHED), library_name="expertmine"
        )
    except (OSError, ValueError, HTTPError) as error:
        at = f" at revision {source.revision}" if source.revision else ""
        raise UserError(
            f"there is no folder {source.id}, and the Hugging Face hub has no such repository{at} or could not be "
            f"reached ({_reason(error)}); expected a run folder, an expert index, or a repository with one"
        ) from error
    return Path(folder)


def publish(folder: Path, names: Sequence[str], repo: str, private: bool) -> str:
    """Upload files of a folder to a repository, which is created if missing; returns its URL.

    Args:
        names: the files; nothing else in the folder is uploaded.

    Raises:
        UserError: the hub cannot be reached, or rejects the upload.
    """
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    require_id(repo)
    try:
        made = huggingface_hub.create_repo(repo, private=private, exist_ok=True)
        huggingface_hub.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(names), commit_message="Expert index of expertmine"
        )
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"{folder} is complete, but could not be published as {repo} ({_reason(error)}); log in with "
            "`hf auth login` and run the same command again"
        ) from error
    return str(made)


def _reason(error: Exception) -> str:
    """The first line of the hub client's error message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
