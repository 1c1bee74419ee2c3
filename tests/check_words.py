"""Keeps one word for one thing, and plain English: names the file, line and better word for each banned one.

``python tests/check_words.py [FILE…]`` looks at the files that are given, or at every tracked text file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

COUNTED = (
    "experts|sentences|positives|texts|units|pairs|files|objects|actors|tasks|responses|numbers|statistics|bytes|"
    "GPUs|CPUs|rows"
)
WHOM = "concept|unit|block|task|partition|stage|cell|token|process|actor|pooling|batch|sentence|worker|sample|pass|fit"
BANNED = {
    # words for things that have another name here; brackets keep this file from naming them itself
    r"P[l]ace": "location",
    r"p[l]ace_of": "a name for the position",
    r"r[o]om_of_memory|R[o]om": "memory budget, or phase",
    r"D[r]iver": "lease holder, or stage attempt",
    r"A[s]ked": "request, or options",
    r"s[h]ape_of": "schema_of, or model_dimensions",
    r"(read_|write_)d[r]ivers?|d[r]iver_at": "stage attempt",
    r"t[a]ps?": "hooks",
    r"t[w]ins?": "template arrays",
    r"told_a[p]art": "hard negatives",
    r"brought[ _]o[v]er": "transferred null",
    r"by l[o]ts?|draw(n|s|ing)? l[o]ts|l[o]ts": "at random, hash priorities",
    r"h[a]stily|in h[a]ste": "single attempt",
    r"p[e]rsistently": "with retries",
    r"b[e]ats?": "heartbeat",
    r"cr[e]ws?": "actor pool",
    r"h[i]re[sd]?|d[i]smiss(es|ed)?": "start, release",
    r"f[i]lling|f[i]lled up|f[i]lls up": "padding",
    r"(M[O]ST|F[E]WEST)_[A-Z_]+": "MAX_, MIN_",
    # English
    r"an[e]w": "again",
    r"l[i]es?\b(?! in wait)": "is at, is stored in",
    r"what is d[o]ne": "finished work, finished tasks",
    r"thousand m[i]llion": "billion",
    rf"({COUNTED}) an? ({WHOM})": "… per …",
    r"of str[a]ngers?|a str[a]nger'?s": "untrusted",
    r"l[e]ts? in": "accepts, allows",
}
PATTERNS = [(re.compile(rf"\b(?:{pattern})\b"), better) for pattern, better in BANNED.items()]
DATA = {".parquet", ".safetensors", ".svg", ".png", ".txt"}


def tracked() -> list[Path]:
    """Every text file that git tracks, but data and licences."""
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [Path(name) for name in listed if name]
    return [
        path
        for path in paths
        if path.suffix not in DATA and "LICENSE" not in path.name and "embedded/model" not in path.as_posix()
    ]


def faults(path: Path) -> list[str]:
    """Each banned word of a file, with its line and a better one."""
    return [
        f"{path}:{number}: {found[0]!r}: say {better}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern, better in PATTERNS
        for found in pattern.finditer(line)
    ]


def main() -> None:
    found = [fault for path in (map(Path, sys.argv[1:]) if sys.argv[1:] else tracked()) for fault in faults(path)]
    print(*found, sep="\n")
    sys.exit(f"{len(found)} banned words" if found else 0)


if __name__ == "__main__":
    main()
