"""What extracting a partition takes of memory: partitions in flight, and a forward pass. Needs no torch."""

from __future__ import annotations

from expertmine.specs.layout import Layout

PHASES = ("tokenising", "running", "writing")
"""What a partition goes through, one partition at a time in each."""
PARTITIONS_IN_FLIGHT = len(PHASES)
"""Partitions that an extracting process is given at once, and holds at most: one per phase."""


def pass_bytes(widest: int, batch_tokens: int) -> int:
    """Bytes that a forward pass holds beside the weights.

    The widest output, what it is computed from and a copy to pool, each in float32; the rest is small beside them.

    Args:
        widest: channels of the widest hookpoint.
        batch_tokens: tokens of a batch, padding included.
    """
    return 3 * widest * batch_tokens * 4


def partitions_bytes(layout: Layout, itemsize: int) -> int:
    """Bytes of responses that an extracting process holds in the host's memory: the partitions in flight.

    Args:
        itemsize: bytes of a response, of all poolings together.
    """
    return PARTITIONS_IN_FLIGHT * layout.partition_rows * layout.padded_shape[1] * itemsize
