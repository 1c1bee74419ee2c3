"""The Triton kernel against PyTorch's own operations. Needs a GPU."""

from __future__ import annotations

import pytest
import torch

from expertmine.model import fused_maximum

pytestmark = pytest.mark.skipif(not fused_maximum.available(), reason="needs a GPU and Triton")
LARGEST = float(torch.finfo(torch.float16).max)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_maxima_are_those_of_pytorch(dtype: torch.dtype, stored: torch.dtype) -> None:
    torch.manual_seed(0)
    sentences, tokens, channels = 7, 37, 300
    output = (3e4 * torch.randn(sentences, tokens, channels, device="cuda")).to(dtype)
    first = torch.randint(0, 3, (sentences,), dtype=torch.int32, device="cuda")
    last = torch.tensor([37, 20, 4, 36, 5, 16, 17], dtype=torch.int32, device="cuda")
    output[2, 3, 7] = torch.nan
    output[3, 36, 9] = torch.nan  # behind the last pooled token
    largest = LARGEST if stored == torch.float16 else None
    found = torch.zeros(sentences, channels + 10, dtype=stored, device="cuda")
    saturated = torch.zeros(3, dtype=torch.int64, device="cuda")
    fused_maximum.masked_maximum(output, first, last, found[:, :channels], saturated[1], largest)

    expected = torch.stack([output[at, first[at] : last[at]].amax(0).float() for at in range(sentences)])
    beyond = int((expected.abs() > LARGEST).sum()) if largest else 0
    expected = (expected.clamp(-LARGEST, LARGEST) if largest else expected).to(stored)
    assert torch.equal(found[:, :channels].nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))
    assert bool(found[2, 7].isnan()) and not bool(found[3, 9].isnan())
    assert not found[:, channels:].any() and saturated.tolist() == [0, beyond, 0]
