"""What scoring takes of memory: the model of it bounds blocks and strips as it says."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from expertmine.mining.planning import widest_block
from expertmine.mining.scoring_memory import GOOD_BYTES, NARROWEST_BLOCK, Work, strips


@given(
    rows=st.integers(1, 10**7),
    concepts=st.integers(1, 10**4),
    dtype=st.sampled_from(["float16", "float32"]),
    room=st.integers(10**8, 10**11),
)
def test_what_is_taken_on_fits_and_one_more_unit_would_not(
    rows: int, concepts: int, dtype: Literal["float16", "float32"], room: int
) -> None:
    work = Work(rows, concepts, 2 * concepts + 100, dtype)
    block = work.widest_block(room)
    if block >= 1:
        assert work.needed(block, block) <= room < work.needed(block + 1, block + 1)
        strip = work.widest_strip(room, 4 * block)
        assert strip < 1 or work.needed(4 * block, strip) <= room
        assert work.widest_strip(room, block) == block
        assert widest_block(work, work.base + room) == block
    good = widest_block(work, None)
    assert good == NARROWEST_BLOCK or good * work.strip_unit <= GOOD_BYTES


@given(first=st.integers(0, 10**6), width=st.integers(1, 300), strip=st.integers(1, 300))
def test_strips_are_the_units_in_order(first: int, width: int, strip: int) -> None:
    units = range(first, first + width)
    found = list(strips(units, strip))
    assert [unit for each in found for unit in each] == list(units)
    assert max(map(len, found)) <= strip
