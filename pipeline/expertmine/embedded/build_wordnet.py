"""Builds ``wordnet.parquet`` from WordNet 3.0's database files: ``python -m expertmine.embedded.build_wordnet [DICT]``.

``DICT`` is a WNDB folder; Debian's package ``wordnet-base`` installs one at ``/usr/share/wordnet``. The same input and
version of pyarrow give the same bytes. Knows nothing of how the table is used.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from expertmine.concepts.wndb import read_wndb

OUTPUT = Path(__file__).with_name("wordnet.parquet")

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("pos", pa.string()),
        ("lexname", pa.string()),
        ("lemmas", pa.list_(pa.string())),
        ("sense_keys", pa.list_(pa.string())),
        ("definition", pa.string()),
        ("examples", pa.list_(pa.string())),
        ("hypernyms", pa.list_(pa.string())),
        ("instance_hypernyms", pa.list_(pa.string())),
    ],
    metadata={"source": "WordNet 3.0, Princeton University; licence in WORDNET-LICENSE beside this file"},
)


def main(dictionary: Path) -> None:
    """Write the table of all synsets of a WNDB folder."""
    synsets = [asdict(synset) for synset in read_wndb(dictionary)]
    table = pa.Table.from_pylist(synsets, schema=SCHEMA)
    pq.write_table(table, OUTPUT, compression="zstd", compression_level=19)
    print(f"{OUTPUT}: {table.num_rows:,} synsets, {OUTPUT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet"))
