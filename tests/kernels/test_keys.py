"""Order keys: every comparison of floats is one of integers, and each float can be recovered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.kernel_inputs import FLOATS, numbers, random_responses, relaxed

from expertmine_kernels import ConceptRows, expertise, key_values, order_keys


def test_keys_order_and_recover_all_16_bit_floats() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = np.sort(every[~np.isnan(every)])
    keys = order_keys(values)
    assert values.size == 65_536 - 2 * 1023
    assert keys.dtype == np.uint16
    rises = np.diff(keys.astype(int))
    assert np.array_equal(rises > 0, np.diff(values.astype(float)) > 0)
    assert (rises >= 0).all()
    assert (rises == 0).sum() == 1, "only the two zeros share a key"
    back = key_values(keys)
    assert back.dtype == np.float16
    assert np.array_equal(back, values)
    assert not np.signbit(back[back == 0]).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_keys_order_and_recover_wide_floats(dtype: type) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 80_000, np.uint8)
    anything = bits.view(dtype)
    limits = np.finfo(dtype)
    edges = [limits.max, limits.tiny, limits.smallest_subnormal, limits.eps, 0.0, np.inf]
    values = np.sort(np.concatenate([anything[~np.isnan(anything)], edges, np.negative(edges)]).astype(dtype))
    keys = order_keys(values)
    assert np.array_equal(keys[1:] > keys[:-1], values[1:] > values[:-1])
    assert (keys[1:] >= keys[:-1]).all()
    assert np.array_equal(key_values(keys), values)


@relaxed
@given(st.data())
def test_keys_keep_the_shape_and_every_comparison(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    values = data.draw(arrays(dtype, (2, 7), elements=numbers(dtype, infinities=True)))
    keys = order_keys(values.T)
    assert keys.shape == (7, 2)
    a, b = keys.reshape(1, -1), values.T.reshape(1, -1)
    assert np.array_equal(a < a.T, b < b.T)
    assert np.array_equal(a == a.T, b == b.T)


def test_keys_do_not_change_the_responses() -> None:
    responses = np.array([1.0, -0.0, -3.0], np.float32)
    before = responses.tobytes()
    order_keys(responses)
    expertise(responses[:, None], ConceptRows.from_lists([[0]], [[1, 2]]))
    assert responses.tobytes() == before


def test_keys_of_nothing_and_of_a_scalar() -> None:
    assert order_keys(np.empty((0, 3), np.float16)).shape == (0, 3)
    assert order_keys(np.float16(0)) == 0x8000


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_first_nan_is_named(dtype: type) -> None:
    responses = np.ones((4, 3), dtype)
    responses[2, 1] = responses[3, 0] = -np.nan
    with pytest.raises(ValueError, match=r"2 NaN, the first at \(2, 1\)"):
        order_keys(responses)
    with pytest.raises(ValueError, match="unit 1 to sentence 2 is NaN"):
        expertise(responses, ConceptRows.from_lists([[0]], [[1]]))


def test_a_nan_is_named_by_its_unit_in_a_later_block() -> None:
    responses = random_responses((40_000, 20))
    responses[123, 17] = np.nan
    with pytest.raises(ValueError, match="unit 17 to sentence 123 is NaN"):
        expertise(responses, ConceptRows.from_lists([[0]], [[1]]))


@pytest.mark.parametrize("responses", [np.arange(4), np.ones(4, np.complex64), np.ones(4, ">f2"), np.array(["a"])])
def test_other_dtypes_are_refused(responses: Any) -> None:
    with pytest.raises(TypeError, match=r"expected float16, float32 or float64.*\.astype"):
        order_keys(responses)


def test_keys_of_another_dtype_are_refused() -> None:
    with pytest.raises(TypeError, match="keys are int16"):
        key_values(np.zeros(3, np.int16))
