"""The site also holds pages that are stored beside docs/: CONTRIBUTING, CHANGELOG, and all of deploy/.

Links are written as they work in the repository, and are rewritten to work in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "ray_cluster.yaml", "constraints.txt", "deploy/**/*")
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is stored beside docs/, under its path in the repository."""
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites each link of a page from paths of the repository to paths of the site."""
    here = posixpath.dirname(page.file.src_uri)
    stored = here if page.file.generated_by else posixpath.join("docs", here)

    def rewritten(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(stored, link["path"]))
        in_site = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return posixpath.relpath(in_site, here or ".") + (link["anchor"] or "")

    return LINK.sub(rewritten, markdown)
