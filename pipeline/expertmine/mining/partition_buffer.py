"""Gathers the responses of a partition, batch by batch, into the one buffer that is written.

On a GPU the buffer is unit-major and on the device, where transposing costs next to nothing, and it is copied once to
pinned memory while the next partition runs. On a CPU, and where the device has no room for it, rows are copied to their
positions as they come and the writer transposes chunk by chunk. Knows no model and no store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from expertmine.specs.layout import Layout


@dataclass(frozen=True, slots=True)
class Gathered:
    """A partition's responses, perhaps still on their way from the device."""

    host: torch.Tensor
    """(poolings, padded units, partition rows) in the host's memory; 0 where nothing was run."""
    counts: torch.Tensor
    """What was counted of them, in the host's memory likewise."""
    arrived: torch.cuda.Event | None
    """Occurs when both are there; None where they are there already."""

    def wait(self) -> tuple[NDArray[np.floating[Any]], list[int]]:
        """The responses, (poolings, padded units, partition rows), and the counts, once they have arrived."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.numpy(), self.counts.tolist()


class PartitionBuffer:
    """The responses of one partition while its batches run."""

    def __init__(self, poolings: int, layout: Layout, dtype: torch.dtype, device: torch.device) -> None:
        """Make an empty buffer.

        Args:
            device: where the responses arise.
        """
        self.units = layout.units
        rows, columns = layout.partition_rows, layout.padded_shape[1]
        self.on_device: torch.Tensor | None = None
        if device.type == "cuda":
            try:
                self.on_device = torch.zeros(poolings, columns, rows, dtype=dtype, device=device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        shape = (poolings, columns, rows) if self.on_device is not None else (poolings, rows, columns)
        pinned = device.type == "cuda"
        self.host = (torch.empty if self.on_device is not None else torch.zeros)(shape, dtype=dtype, pin_memory=pinned)

    def add(self, rows: torch.Tensor, responses: torch.Tensor) -> None:
        """Take the responses of a batch.

        Args:
            rows: (sentences,) int64, their rows in the partition.
            responses: (poolings, sentences, units) on the device.
        """
        if self.on_device is not None:
            there = rows.to(self.on_device.device, non_blocking=True)
            self.on_device[:, : self.units].index_copy_(2, there, responses.transpose(1, 2))
        else:
            self.host[:, :, : self.units].index_copy_(1, rows, responses.to(self.host.device))

    def send(self, counts: torch.Tensor, copies: torch.cuda.Stream | None) -> Gathered:
        """Begin to copy what was gathered to the host; nothing may be added after that.

        Args:
            counts: int64 on the device, what was counted of the responses. Read on the computing stream, they would
                have to wait for the next partition, whose kernels are queued there by then.
            copies: the stream to copy on, beside the one that computes; None on a CPU.
        """
        if copies is None:
            return Gathered(self.host.transpose(1, 2), counts, None)
        host_counts = torch.empty(counts.shape, dtype=counts.dtype, pin_memory=True)
        copies.wait_stream(torch.cuda.current_stream(counts.device))
        with torch.cuda.stream(copies):
            if self.on_device is not None:
                self.host.copy_(self.on_device, non_blocking=True)
                self.on_device.record_stream(copies)
            host_counts.copy_(counts, non_blocking=True)
            counts.record_stream(copies)
            arrived = torch.cuda.Event()
            arrived.record(copies)
        return Gathered(self.host if self.on_device is not None else self.host.transpose(1, 2), host_counts, arrived)
