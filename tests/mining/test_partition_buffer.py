"""A partition's buffer: every response at its unit and row, zeros elsewhere, on a CPU and on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch

from expertmine.mining.partition_buffer import PartitionBuffer
from expertmine.specs.layout import Layout

LAYOUT = Layout((10,), units=70, partition_rows=32, block_units=32, shard_units=64)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_responses_are_at_their_units_and_rows(device: str) -> None:
    rows = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    responses = torch.arange(2 * 10 * 70).reshape(2, 10, 70).to(torch.float16)
    buffer = PartitionBuffer(2, LAYOUT, torch.float16, torch.device(device))
    for batch in (slice(0, 4), slice(4, 9)):  # the last sentence is dropped
        buffer.add(rows[batch], responses[:, batch].to(device))
    sent = buffer.send(torch.tensor([7, 8], device=device), torch.cuda.Stream() if device == "cuda" else None)
    gathered, counts = sent.wait()

    assert counts == [7, 8]
    assert gathered.shape == (2, 128, 32)  # two shards of 64 units
    expected = torch.zeros(2, 128, 32, dtype=torch.float16)
    for at, row in enumerate(rows[:9].tolist()):
        expected[:, :70, row] = responses[:, at]
    assert (gathered == expected.numpy()).all()
