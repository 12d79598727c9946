"""Statistics of times by their properties, and works that take turns under a clock that the test moves."""

import math
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harec_deploy.bench import noise
from harec_deploy.bench.measure import Budget, Timing, Work, interleave, ratios
from harec_deploy.errors import UsageError
from harec_deploy.intervals import grouped_median_interval, median_interval, ratio_interval

seconds = st.floats(1e-6, 1e3)


class TestMedianInterval:
    @pytest.mark.parametrize(
        ("count", "ranks"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (50, (18, 33)), (100, (40, 61))]
    )
    def test_ranks_are_those_of_published_tables(self, count: int, ranks: tuple[int, int]) -> None:
        assert median_interval(range(1, count + 1)) == ranks

    @given(st.integers(1, 400))
    def test_it_is_the_narrowest_that_covers_95_percent(self, count: int) -> None:
        chance = [math.comb(count, below) / 2**count for below in range(count + 1)]
        found = median_interval(range(1, count + 1))
        if found is None:
            assert 1 - 2 * chance[0] < 0.95
            return
        rank = int(found[0])
        assert found == (rank, count + 1 - rank)
        assert 1 - 2 * sum(chance[:rank]) >= 0.95
        assert 1 - 2 * sum(chance[: rank + 1]) < 0.95

    @given(st.lists(seconds, min_size=6, max_size=60), st.floats(0.01, 100), st.randoms())
    def test_it_holds_the_median_and_follows_the_unit_but_not_the_order(
        self, values: list[float], unit: float, random: Random
    ) -> None:
        low, high = median_interval(values) or pytest.fail("no interval")
        assert min(values) <= low <= float(np.median(values)) <= high <= max(values)
        shuffled = list(values)
        random.shuffle(shuffled)
        assert median_interval(shuffled) == (low, high)
        assert median_interval([value * unit for value in values]) == (low * unit, high * unit)

    def test_of_a_known_distribution_it_holds_the_median_as_often_as_it_says(self) -> None:
        drawn = np.random.default_rng(0).lognormal(size=(2000, 25))
        held = [low <= 1.0 <= high for low, high in filter(None, map(median_interval, drawn.tolist()))]
        assert len(held) == 2000
        assert 0.945 < np.mean(held) < 0.975  # 25 values: 95.7 %, give or take 1 % for 2,000 draws


class TestGroupedMedianInterval:
    @given(st.lists(st.lists(seconds, min_size=1, max_size=5), min_size=1, max_size=30), st.randoms())
    def test_it_holds_the_median_of_all_values_whatever_the_order(
        self, groups: list[list[float]], random: Random
    ) -> None:
        found = grouped_median_interval([np.array(each) for each in groups])
        if len(groups) < 6:
            assert found is None
            return
        low, high = found or pytest.fail("no interval")
        assert low <= np.median(np.concatenate(groups)) <= high
        random.shuffle(groups)
        assert grouped_median_interval([np.array(each) for each in groups]) == found

    @pytest.mark.parametrize("count", [6, 20, 50, 100])
    def test_of_groups_of_one_it_is_that_of_order_statistics_give_or_take_one(self, count: int) -> None:
        found = grouped_median_interval([np.array([float(value)]) for value in range(1, count + 1)])
        assert found == pytest.approx(median_interval(range(1, count + 1)), abs=1)

    @pytest.mark.parametrize(("shared", "count"), [(0.0, 12), (1.0, 12), (1.0, 40), (10.0, 25)])
    def test_it_holds_the_true_median_as_often_as_it_says(self, shared: float, count: int) -> None:
        """Calls of a round share what slowed it, once as much as they differ by, once ten times as much."""
        random = np.random.default_rng(0)
        held = []
        for _ in range(1000):
            sizes = random.integers(3, 12, count)
            groups = [np.exp(random.normal() * shared + random.normal(size=size)) for size in sizes]
            low, high = grouped_median_interval(groups) or pytest.fail("no interval")
            held.append(low <= 1.0 <= high)
        assert 0.935 < np.mean(held) < 0.99

    def test_calls_taken_for_independent_would_be_too_sure(self) -> None:
        random, count = np.random.default_rng(0), 20
        groups = [random.normal(scale=5) + random.normal(size=50) + 100 for _ in range(count)]
        low, high = grouped_median_interval(groups) or pytest.fail("no interval")
        naive = median_interval(np.concatenate(groups).tolist()) or pytest.fail("no interval")
        assert high - low > 3 * (naive[1] - naive[0])


def test_the_interval_of_a_ratio_holds_the_true_one_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(1000):
        under = random.uniform(1, 3, 20)
        low, high = ratio_interval(0.4 * under * random.lognormal(0, 0.2, 20), under) or pytest.fail("no interval")
        held.append(low <= 0.4 * math.exp(0.02) <= high)
    assert 0.93 < np.mean(held) < 0.975
    assert ratio_interval([1.0] * 5, [2.0] * 5) is None
    assert ratio_interval([1.0] * 6, [2.0] * 6) == (0.5, 0.5)


class TestTiming:
    @given(st.lists(st.lists(seconds, min_size=1, max_size=5), min_size=1, max_size=30))
    def test_percentiles_ascend_and_the_histogram_counts_every_call(self, rounds: list[list[float]]) -> None:
        timing = Timing(tuple(map(tuple, rounds)))
        calls = sum(map(len, rounds))
        p50, p90, p99 = (timing.percentile(share) for share in (50, 90, 99))
        assert (p90 is None, p99 is None) == (calls < 10, calls < 100)
        assert p50 is not None
        assert p50 <= (p90 or p50) <= (p99 or p90 or p50)
        counts, edges = timing.histogram()
        assert timing.median == pytest.approx(p50)
        assert sum(counts) == calls
        assert edges == sorted(edges)
        assert timing.calls[0] <= timing.mean * (1 + 1e-9)
        assert timing.mean <= timing.calls[-1] * (1 + 1e-9)

    def test_the_interval_is_of_the_p50_that_is_told(self) -> None:
        random = Random(3)
        timing = Timing(tuple(tuple(random.gauss(1.0, 0.1) for _ in range(n % 7 + 1)) for n in range(30)))
        low, high = timing.interval or pytest.fail("no interval")
        assert low < (timing.percentile(50) or 0.0) < high
        assert timing.within == pytest.approx((high - low) / 2 / timing.median)

    def test_what_slows_a_round_does_not_change_the_ratio(self) -> None:
        slow = (1.0, 3.0, 1.0, 20.0)
        first, other = (Timing(tuple((base * each,) for each in slow)) for base in (0.2, 0.1))
        assert ratios(first, other) == [pytest.approx(2)] * 4


class Clock:
    """Stands still but for the works, each of which moves it by the seconds that it takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *takes: float) -> Work:
        each: Iterator[float] = cycle(takes)

        def run() -> tuple[float]:
            self.done.append(name)
            took = next(each)
            self.now += took
            return (took,)

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestInterleave:
    def run(self, clock: Clock, works: dict[str, Work], **budget: float) -> dict[str, Timing]:
        defaults = {"warm_up_s": 0.0, "turn_s": 0.0, "seconds": 1000.0}
        return interleave(works, Budget(**{**defaults, **budget}), clock=clock)  # type: ignore[arg-type]

    def test_works_take_turns_and_another_begins_each_round(self, clock: Clock) -> None:
        timings = self.run(clock, {name: clock.work(name, 1.0) for name in "abc"})
        assert "".join(clock.done) == "abc" + "abcbcacab" * 2
        assert {name: len(timing.rounds) for name, timing in timings.items()} == {"a": 6, "b": 6, "c": 6}

    def test_it_ends_when_all_are_known_well_enough(self, clock: Clock) -> None:
        steady, wild = clock.work("steady", 1.0), clock.work("wild", 1.0, 1.01, 3.0, 1.02, 1.005)
        assert len(self.run(clock, {"steady": steady})["steady"].rounds) == 6
        timings = self.run(clock, {"steady": steady, "wild": wild}, within=0.02)
        assert len(timings["wild"].rounds) > 6
        assert timings["wild"].within <= 0.02
        before = {name: Timing(timing.rounds[:-1]) for name, timing in timings.items()}
        assert before["wild"].within > 0.02

    def test_it_ends_when_another_round_would_take_too_long(self, clock: Clock) -> None:
        timings = self.run(clock, {"a": clock.work("a", 1.0, 2.0)}, seconds=10.0, within=0.001)
        assert sum(map(sum, timings["a"].rounds)) <= 10
        assert len(self.run(clock, {"a": clock.work("a", 50.0)}, seconds=1.0)["a"].rounds) == 1
        assert timings["a"].interval is not None

    def test_calls_count_beside_rounds(self, clock: Clock) -> None:
        timings = self.run(clock, {"a": clock.work("a", 1.0)}, least_calls=40)
        assert len(timings["a"].calls) == 40

    def test_warming_up_is_not_counted(self, clock: Clock) -> None:
        takes = iter([9.0, 9.0, *[1.0] * 20])
        self_made: Callable[[], tuple[float]] = lambda: (clock.work("a", next(takes))()[0],)  # noqa: E731
        assert self.run(clock, {"a": self_made}, warm_up_s=10.0)["a"].calls.max() == 1.0

    def test_the_first_call_of_a_turn_does_not_count_where_there_are_more(self, clock: Clock) -> None:
        # One call warms up, then each turn has three, the last of which begins within the time.
        timings = self.run(clock, {"a": clock.work("a", 1.0, 2.0, 1.0)}, turn_s=3.5)
        assert set(timings["a"].rounds) == {(1.0, 1.0)}
        assert self.run(clock, {"a": clock.work("a", 5.0)}, turn_s=3.5)["a"].rounds[0] == (5.0,)

    @pytest.mark.parametrize(
        ("wrong", "told"), [({"within": 0.0}, "--within 0: allowed"), ({"seconds": -1.0}, "--seconds -1: allowed")]
    )
    def test_a_budget_that_cannot_be_met_is_refused(self, wrong: dict[str, float], told: str) -> None:
        with pytest.raises(UsageError, match=told):
            Budget(**wrong)  # type: ignore[arg-type]


class TestNoise:
    def reading(self, tmp_path: Path, numbers: str, mhz: tuple[float, float]) -> noise.Reading:
        (tmp_path / "stat").write_text(f"cpu  {numbers}\ncpu0 1 2 3\n")
        (tmp_path / "cpuinfo").write_text("".join(f"processor\t: {i}\ncpu MHz\t\t: {m}\n" for i, m in enumerate(mhz)))
        return noise.read(tmp_path / "stat", tmp_path / "cpuinfo")

    def test_readings_are_the_systems_counters(self, tmp_path: Path) -> None:
        #                                    user nice system idle iowait irq softirq steal guest guest_nice
        found = self.reading(tmp_path, "1000 200 300 9000 70 10 20 40 500 0", (2000, 3000))
        assert found.busy_s * noise._TICKS_PER_S == pytest.approx(1530)  # guests are in user already
        assert found.steal_s * noise._TICKS_PER_S == pytest.approx(40)
        assert found.clock_mhz == 2500

    def test_a_system_without_counters_is_no_error(self, tmp_path: Path) -> None:
        found = noise.read(tmp_path / "none", tmp_path / "none")
        assert (found.busy_s, found.steal_s, found.clock_mhz) == (0, 0, None)

    @pytest.mark.parametrize(
        ("busy_s", "steal_s", "mhz", "told"),
        [
            (5.2, 0.05, 2501.0, []),
            (9.0, 0.0, 2500.0, ["other processes took 20% of 2 cores meanwhile (load average 1.5 at the start)"]),
            (5.0, 1.0, 2500.0, ["the hypervisor took 5.0% of the cores' time for others (steal)"]),
            (5.0, 0.0, 2000.0, ["the cores' clock went from 2500 to 2000 MHz"]),
        ],
    )
    def test_what_disturbs_is_told(self, busy_s: float, steal_s: float, mhz: float, told: list[str]) -> None:
        before = noise.Reading(0.0, 100.0, 10.0, 7.0, 2500.0)
        after = noise.Reading(10.0, 100.0 + busy_s, 10.0 + steal_s, 7.0 + 5.0, mhz)
        notes = noise.notes(noise.compare(before, after, load=1.5, cores=2))
        assert [note.partition(":")[0] for note in notes] == told

    def test_the_machine_is_looked_at_around_a_block(self) -> None:
        with noise.Watch() as watch:
            sum(range(100_000))
        assert watch.facts["cores"] >= 1
        assert watch.facts["own_share"] >= 0
