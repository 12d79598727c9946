"""Windows become segments."""

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harec_deploy.sampling import Window, sliding
from harec_deploy.segments import UNKNOWN, Segment, best_labels, merge, smoothed

CLASSES = ["a", "b", "c"]
bounded = settings(deadline=None, derandomize=True, max_examples=150)


def shortest_run(labels: Sequence[int], borders: Sequence[float]) -> float:
    """Return the seconds that the shortest run of a label lasts."""
    changes = [0, *(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]), len(labels)]
    return min(borders[end] - borders[start] for start, end in pairwise(changes))


def chosen_by_search(probabilities: NDArray[np.float64], borders: Sequence[float], shortest_s: float) -> float:
    """Return the greatest sum of log probabilities of any labelling in runs of at least ``shortest_s``."""
    count, classes = probabilities.shape
    best = -np.inf
    for labels in product(range(classes), repeat=count):
        if shortest_run(labels, borders) >= min(shortest_s, borders[-1]):
            best = max(best, float(np.log(probabilities[np.arange(count), labels]).sum()))
    return best


@bounded
@given(st.integers(1, 7), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_the_labelling_is_the_best_there_is(count: int, shortest_s: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([0.4] * 3, count).clip(1e-6)
    borders = [0.0, *random.integers(1, 5, count).cumsum().tolist()]
    labels = best_labels(probabilities, borders, shortest_s)
    assert shortest_run(labels.tolist(), borders) >= min(shortest_s, borders[-1])
    got = np.log(probabilities[np.arange(count), labels]).sum()
    assert got == pytest.approx(chosen_by_search(probabilities, borders, shortest_s), abs=1e-4)


@bounded
@given(st.integers(1, 40), st.floats(0.5, 4), st.floats(0.1, 1), st.integers(0, 9), st.floats(0, 6))
def test_segments_tile_the_video(
    duration_s: float, window_s: float, share: float, smooth: int, min_segment_s: float
) -> None:
    windows = sliding(duration_s, window_s, window_s * share)
    probabilities = np.random.default_rng(len(windows)).dirichlet([0.5] * 3, len(windows)).astype(np.float32)
    found = merge(windows, probabilities, CLASSES, smooth=2 * smooth + 1, min_segment_s=min_segment_s, min_score=0.5)
    assert (found[0].start_s, found[-1].end_s) == (0.0, duration_s)
    assert all(a.end_s == b.start_s and a.label != b.label for a, b in pairwise(found))
    assert all(s.end_s - s.start_s >= min(min_segment_s, duration_s) - 1e-5 for s in found)
    assert all(s.start_s < s.end_s and 0 <= s.score <= 1 for s in found)
    assert all((s.score < 0.5) == (s.label == UNKNOWN) for s in found)


def rows(text: str, sure: float = 0.9) -> NDArray[np.float32]:
    """Return probabilities of windows by the letters of their classes."""
    table = np.full((len(text), 3), (1 - sure) / 2, dtype=np.float32)
    table[np.arange(len(text)), [CLASSES.index(letter) for letter in text]] = sure
    return table


def spans(text: str, **options: float) -> list[tuple[float, float, str]]:
    found = merge(sliding(len(text) + 3, 4, 1), rows(text), CLASSES, **options)  # type: ignore[arg-type]
    return [(s.start_s, s.end_s, s.label) for s in found]


def test_a_window_speaks_for_the_time_around_its_middle() -> None:
    assert spans("aabbb") == [(0.0, 3.5, "a"), (3.5, 8.0, "b")]
    assert spans("a") == [(0.0, 4.0, "a")]


def test_what_is_too_short_goes_to_its_neighbours() -> None:
    assert spans("aaabaaa") == [(0.0, 4.5, "a"), (4.5, 5.5, "b"), (5.5, 10.0, "a")]
    assert spans("aaabaaa", min_segment_s=2) == [(0.0, 10.0, "a")]
    assert spans("aaabaaa", smooth=3) == [(0.0, 10.0, "a")]
    assert spans("aaabbbaaa", min_segment_s=3) == [(0.0, 4.5, "a"), (4.5, 7.5, "b"), (7.5, 12.0, "a")]
    assert spans("ab", min_segment_s=9) in ([(0.0, 5.0, "a")], [(0.0, 5.0, "b")])


def test_the_score_is_the_mean_probability_of_the_label() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]], dtype=np.float32)
    (only,) = merge([Window(0, 4), Window(1, 5)], probabilities, CLASSES)
    assert only == Segment(0, 5, "a", pytest.approx(0.7))


def test_what_is_not_sure_enough_is_unknown() -> None:
    probabilities = np.concatenate([rows("aa"), rows("ab", sure=0.4), rows("c")])
    found = merge(sliding(8, 4, 1), probabilities, CLASSES, min_score=0.5)
    assert [(s.label, s.score) for s in found] == [
        ("a", pytest.approx(0.733, abs=1e-3)),
        (UNKNOWN, pytest.approx(0.4)),
        ("c", pytest.approx(0.9)),
    ]


def test_smoothing_averages_what_is_there() -> None:
    values = np.array([[1.0], [2.0], [6.0], [3.0]], dtype=np.float32)
    np.testing.assert_allclose(smoothed(values, 3)[:, 0], [1.5, 3.0, 11 / 3, 4.5])
    np.testing.assert_array_equal(smoothed(values, 1), values)
