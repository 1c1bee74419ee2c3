"""The maximum over each sentence's tokens in one read of a module's output, as one Triton kernel for GPUs.

PyTorch's own operations (`expertmine.model.responses.pool`) read an output several times, write it once more to mask
it, and take a launch each. They are this kernel's oracle, and run where Triton or a GPU is missing. Knows no model and
no store.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from expertmine.telemetry import logs

if TYPE_CHECKING:
    import triton.language as tl

CHANNELS = 512
"""Channels of one program. With `TOKENS` and `WARPS`, the fastest of 48 settings on an H100: 2.0 TB/s."""
TOKENS = 4
"""Tokens that a program reads at a time."""
WARPS = 2


@cache
def available() -> bool:
    """Whether the kernel can run: a GPU is visible, PyTorch brought Triton, and Triton can compile here.

    Compiling needs a C compiler and a cache folder whose files may be executed; containers often have neither.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return False
    try:
        _compile()
    except Exception as error:  # whatever Triton, its compilers and the disk raise: PyTorch's operations do it as well
        logs.event("kernel not available", logging.WARNING, kernel="masked_maximum", reason=str(error))
        return False
    return True


def _compile() -> None:
    """Run the kernel once, on one response."""
    one = torch.zeros(1, 1, 1, device="cuda")
    first, last = torch.zeros(1, dtype=torch.int32, device="cuda"), torch.ones(1, dtype=torch.int32, device="cuda")
    saturated = torch.zeros((), dtype=torch.int64, device="cuda")
    masked_maximum(one, first, last, torch.empty(1, 1, device="cuda"), saturated, None)
    torch.cuda.synchronize()


@cache
def _kernel() -> Any:
    """The kernel, made when it is first needed: Triton takes a second to import."""
    import triton
    import triton.language as tl

    # Triton looks a kernel's names up in its module's globals, not in the function around it.
    globals()["tl"] = tl
    return triton.jit(_masked_maximum)


def _masked_maximum(  # type: ignore[no-untyped-def]
    output, first, last, responses, saturated, channels, sentence_step, token_step, responses_step, largest,
    clamped: tl.constexpr, channels_each: tl.constexpr, tokens_each: tl.constexpr,
):  # fmt: skip
    sentence = tl.program_id(0)
    channel = tl.program_id(1) * channels_each + tl.arange(0, channels_each)
    inside = channel < channels
    begin, end = tl.load(first + sentence), tl.load(last + sentence)
    at = output + sentence.to(tl.int64) * sentence_step
    maximum = tl.full((channels_each,), float("-inf"), tl.float32)
    nan = tl.zeros((channels_each,), tl.int32)
    for start in range(begin, end, tokens_each):
        token = start + tl.arange(0, tokens_each)
        values = tl.load(
            at + token[:, None] * token_step + channel[None, :],
            mask=(token[:, None] < end) & inside[None, :],
            other=float("-inf"),
        ).to(tl.float32)
        maximum = tl.maximum(maximum, tl.max(values, axis=0))
        nan = tl.maximum(nan, tl.max((values != values).to(tl.int32), axis=0))
    if clamped:
        beyond = tl.sum(((tl.abs(maximum) > largest) & inside & (nan == 0)).to(tl.int64), axis=0)
        if beyond > 0:  # hardly ever, and every program would wait for the same address
            tl.atomic_add(saturated, beyond)
        maximum = tl.minimum(tl.maximum(maximum, -largest), largest)
    maximum = tl.where(nan > 0, float("nan"), maximum)
    tl.store(responses + sentence.to(tl.int64) * responses_step + channel, maximum, mask=inside)


def masked_maximum(
    output: torch.Tensor,
    first: torch.Tensor,
    last: torch.Tensor,
    responses: torch.Tensor,
    saturated: torch.Tensor,
    largest: float | None,
) -> None:
    """Write the maximum over each sentence's pooled tokens, of a module's output that is on a GPU.

    Args:
        output: (sentences, tokens, channels), its channels contiguous.
        first: (sentences,) int32, the first pooled token of each; `last` likewise, the one after the last.
        responses: (sentences, channels) to be written, its channels contiguous. NaN where any pooled token has it.
        saturated: () int64, to which the responses beyond `largest` are added.
        largest: to which responses are clamped, either way; None for as they are.
    """
    sentences, _, channels = output.shape
    with torch.cuda.device_of(output):
        _kernel()[sentences, -(-channels // CHANNELS)](
            output, first, last, responses, saturated, channels,
            output.stride(0), output.stride(1), responses.stride(0),
            0.0 if largest is None else largest, largest is not None, CHANNELS, TOKENS, num_warps=WARPS,
        )  # fmt: skip
