"""What else a machine did while it was measured: other processes, the hypervisor, the clock."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from harec_deploy.machine import CPUINFO

STAT = Path("/proc/stat")
_OTHERS, _STEAL, _CLOCK = 0.05, 0.01, 0.05  # shares from which figures are not to be trusted without a word
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the system counts, in seconds summed over its cores; own_s: this process and its children that ended.

    clock_mhz: the mean of the cores' clocks, None where the system does not tell.
    """

    at_s: float
    busy_s: float
    steal_s: float
    own_s: float
    clock_mhz: float | None


class Watch:
    """Looks at the machine before and after the block; ``notes`` says what a reader of the figures must know."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []

    def __enter__(self) -> "Watch":
        self._load = os.getloadavg()[0]
        self._before = read()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.facts = compare(self._before, read(), self._load, os.cpu_count() or 1)
            self.notes = notes(self.facts)


def read(stat: Path = STAT, cpuinfo: Path = CPUINFO) -> Reading:
    """Read the counters of now; those that the system does not have are 0."""
    busy = steal = 0.0
    if stat.exists():
        # user nice system idle iowait irq softirq steal guest guest_nice, of which guests are in user already
        words = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:]] + [0] * 10
        busy, steal = (sum(words[place] for place in places) / _TICKS_PER_S for places in ((0, 1, 2, 5, 6), (7,)))
    mhz = re.findall(r"^cpu MHz\s*: ([\d.]+)", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    own = os.times()
    spent = own.user + own.system + own.children_user + own.children_system
    return Reading(time.monotonic(), busy, steal, spent, sum(map(float, mhz)) / len(mhz) if mhz else None)


def compare(before: Reading, after: Reading, load: float, cores: int) -> dict[str, Any]:
    """Return what happened between two readings, as shares of all cores' time; ``load``: the average at the start."""
    time_s = max((after.at_s - before.at_s) * cores, 1e-9)
    own_s, steal_s = after.own_s - before.own_s, after.steal_s - before.steal_s
    others_s = after.busy_s - before.busy_s - own_s
    return {
        "cores": cores,
        "load_before": round(load, 2),
        "own_share": round(own_s / time_s, 4),
        "others_share": round(max(others_s, 0.0) / time_s, 4),
        "steal_share": round(steal_s / time_s, 4),
        "clock_mhz": [before.clock_mhz, after.clock_mhz],
    }


def notes(facts: dict[str, Any]) -> list[str]:
    """Say in words what disturbed the figures; nothing of a quiet machine."""
    told = []
    if facts["others_share"] > _OTHERS:
        told.append(
            f"other processes took {facts['others_share']:.0%} of {facts['cores']} cores meanwhile (load average "
            f"{facts['load_before']:g} at the start): trust ratios more than seconds"
        )
    if facts["steal_share"] > _STEAL:
        told.append(f"the hypervisor took {facts['steal_share']:.1%} of the cores' time for others (steal)")
    first, last = facts["clock_mhz"]
    if first and last and abs(last / first - 1) > _CLOCK:
        told.append(f"the cores' clock went from {first:.0f} to {last:.0f} MHz")
    return told
