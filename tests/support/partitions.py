"""Partitions of made-up responses, put into a store."""

from __future__ import annotations

import numpy as np

from expertmine.run.store import Store


def write_responses(store: Store, partition: int, values: np.ndarray, tokens: np.ndarray) -> dict[str, str]:
    """Store a partition of one pooling, ``max``; returns the checksums.

    Args:
        values: (sentences, units), of the partition's first rows.
        tokens: (sentences,).
    """
    layout = store.plan.layout
    padded = np.zeros((layout.partition_rows, layout.padded_shape[1]), values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    padded_tokens = np.zeros(layout.partition_rows, np.int32)
    padded_tokens[: len(tokens)] = tokens
    return store.write_partition(partition, {"max": padded.T}, padded_tokens)
