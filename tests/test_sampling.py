"""Which moments of a video are looked at."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harec_deploy.errors import UsageError
from harec_deploy.sampling import ClipSampling, Window, sliding, whole

bounded = settings(deadline=None, derandomize=True, max_examples=200)
samplings = st.builds(ClipSampling, frames=st.integers(1, 64), span=st.floats(0.01, 1.0))
windows = st.builds(lambda start, length: Window(start, start + length), st.floats(0, 1e4), st.floats(0.05, 1e3))


@bounded
@given(samplings, windows, st.integers(1, 5), st.floats(-0.5, 0.5))
def test_times_ascend_inside_the_window(sampling: ClipSampling, window: Window, per_part: int, shift: float) -> None:
    times = sampling.timestamps_s(window, shift, per_part=per_part)
    assert times.shape == (sampling.frames * per_part,)
    assert times.dtype == np.float64
    assert (np.diff(times) > 0).all()
    margin = (window.end_s - window.start_s) * (1 - sampling.span) / 2
    slack = 1e-9 * window.end_s
    assert times[0] >= window.start_s + margin - slack
    assert times[-1] <= window.end_s - margin + slack


@bounded
@given(samplings, windows)
def test_times_are_the_middles_of_equal_parts(sampling: ClipSampling, window: Window) -> None:
    times = sampling.timestamps_s(window)
    margin = (window.end_s - window.start_s) * (1 - sampling.span) / 2
    borders = np.linspace(window.start_s + margin, window.end_s - margin, sampling.frames + 1)
    np.testing.assert_allclose(times, (borders[1:] + borders[:-1]) / 2, rtol=1e-9, atol=1e-9)


@bounded
@given(samplings, windows, st.sampled_from([1, 3, 5, 7]))
def test_an_odd_number_per_part_has_the_middle_ones(sampling: ClipSampling, window: Window, per_part: int) -> None:
    dense = sampling.timestamps_s(window, per_part=per_part).reshape(sampling.frames, per_part)
    np.testing.assert_allclose(dense[:, per_part // 2], sampling.timestamps_s(window), rtol=1e-9, atol=1e-9)


@bounded
@given(samplings, windows, st.integers(0, 2**32 - 1))
def test_a_shift_for_each_time_keeps_the_order(sampling: ClipSampling, window: Window, seed: int) -> None:
    shifts = np.random.default_rng(seed).uniform(-0.5, 0.5, sampling.frames)
    times = sampling.timestamps_s(window, shifts)
    assert (np.diff(times) >= 0).all()
    part = (window.end_s - window.start_s) * sampling.span / sampling.frames
    np.testing.assert_allclose(times, sampling.timestamps_s(window) + shifts * part, rtol=1e-9, atol=1e-9)


def test_known_times() -> None:
    assert ClipSampling(frames=4).timestamps_s(Window(0, 8)).tolist() == [1, 3, 5, 7]
    assert ClipSampling(frames=4, span=0.5).timestamps_s(Window(0, 8)).tolist() == [2.5, 3.5, 4.5, 5.5]
    assert ClipSampling(frames=2).timestamps_s(Window(10, 12), 0.5).tolist() == [11, 12]
    assert ClipSampling(frames=1).timestamps_s(Window(0, 3), per_part=3).tolist() == [0.5, 1.5, 2.5]


@pytest.mark.parametrize("fields", [{"frames": 0}, {"frames": 1025}, {"span": 0.0}, {"span": 1.01}, {"span": -1.0}])
def test_bad_sampling_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        ClipSampling(**fields)  # type: ignore[arg-type]


@bounded
@given(st.floats(0.1, 100), st.floats(0.5, 50), st.floats(0.1, 1))
def test_sliding_covers(duration_s: float, window_s: float, share: float) -> None:
    stride_s = window_s * share
    found = sliding(duration_s, window_s, stride_s)
    assert found[0].start_s == 0
    assert found[-1].end_s == pytest.approx(duration_s)
    length = min(duration_s, window_s)
    for window in found:
        assert window.end_s - window.start_s == pytest.approx(length)
        assert window.start_s >= 0
        assert window.end_s <= duration_s * (1 + 1e-9)
    for before, after in pairwise(found):
        assert before.start_s < after.start_s
        assert after.start_s <= before.end_s * (1 + 1e-9)  # no gap
        assert after.start_s - before.start_s <= stride_s * (1 + 1e-9)
    assert len(found) <= np.ceil(max(0.0, duration_s - window_s) / stride_s) + 1


def test_known_windows() -> None:
    assert sliding(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert sliding(9, 4, 4) == [(0, 4), (4, 8), (5, 9)]
    assert sliding(3, 4, 2) == whole(3) == [(0, 3)]
    assert sliding(4, 4, 1) == [(0, 4)]


@pytest.mark.parametrize(("window_s", "stride_s"), [(2, 3), (2, 0), (2, -1), (0, 0), (-1, -1), (2, float("nan"))])
def test_windows_that_leave_gaps_are_refused(window_s: float, stride_s: float) -> None:
    with pytest.raises(UsageError, match="allowed are 0 < stride <= window"):
        sliding(10, window_s, stride_s)
