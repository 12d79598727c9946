"""Where harec-deploy stands: what peers.json says of each program, and who is ahead of whom in what."""

from dataclasses import dataclass
from typing import Any

from benchmarks.measured import middle, ratio

# What is compared: the field of a round, its words, and whether more of it is better.
MEASURES = {
    "videos_per_s": ("videos/s with the model loaded", True),
    "whole_videos_per_s": ("videos/s of the whole run, start-up included", True),
    "ready_s": ("seconds until the model is loaded", False),
    "first_label_s": ("seconds to the first label", False),
    "cpu_s_per_video": ("processor seconds a video", False),
    "peak_mib": ("peak memory", False),
}
OWN = "harec-deploy "


@dataclass(frozen=True)
class Program:
    """A program's results. right: its labels were the reference's whenever they were looked at."""

    name: str
    facts: dict[str, Any]

    @property
    def own(self) -> bool:
        return self.name.startswith(OWN)

    @property
    def precision(self) -> str:
        return str(self.facts["precision"])

    @property
    def rounds(self) -> dict[int, dict[str, Any]]:
        """The rounds that came to an end, by number."""
        return {row["round"]: row for row in self.facts["rounds"] if "failed" not in row and "videos_per_s" in row}

    @property
    def looked_at(self) -> list[dict[str, Any]]:
        return [self.facts["check"], *(row["outputs"] for row in self.facts["rounds"])]

    @property
    def right(self) -> bool:
        return all(outputs["right"] for outputs in self.looked_at)

    @property
    def right_frames(self) -> bool:
        return bool(self.facts["frames"]["right"] == self.facts["frames"]["of"])

    @property
    def max_abs_dp(self) -> float:
        return float(max(outputs["max_abs_dp"] for outputs in self.looked_at))

    @property
    def other_labels(self) -> int:
        """Videos with another label than the reference's, or none, in the worst run."""
        return max(len(each["other_labels"]) + len(each["missing"]) + each["doubled"] for each in self.looked_at)

    def middle(self, measure: str) -> dict[str, float]:
        return middle([row[measure] for row in self.rounds.values()])

    def ratio(self, other: "Program", measure: str) -> dict[str, float]:
        """Return how many times the other's figure this one's is, over the rounds that both ended."""
        both = sorted(self.rounds.keys() & other.rounds.keys())
        return ratio([self.rounds[n][measure] for n in both], [other.rounds[n][measure] for n in both])


def programs(facts: dict[str, Any]) -> list[Program]:
    """Return what was measured, the fastest first."""
    found = [Program(name, each) for name, each in facts["peers"].items()]
    return sorted((each for each in found if each.rounds), key=lambda each: -each.middle("videos_per_s")["median"])


def own_in(found: list[Program], precision: str) -> Program | None:
    """Return harec-deploy in a precision, None where it was not measured or its labels were wrong."""
    return next((each for each in found if each.own and each.right and each.precision == precision), None)


def fastest_own(found: list[Program]) -> Program | None:
    """Return harec-deploy in its fastest precision whose labels were right."""
    return next((each for each in found if each.own and each.right), None)


def duels(found: list[Program]) -> list[dict[str, Any]]:
    """Return every comparison of harec-deploy with a peer in the same precision whose labels were right.

    times: how many times better harec-deploy is (below 1 it loses). certain: all rounds agree on who is ahead.
    """
    results = []
    for peer in (each for each in found if not each.own and each.right):
        own = own_in(found, peer.precision)
        if own is None or not own.rounds.keys() & peer.rounds.keys():
            continue
        for measure, (_, more) in MEASURES.items():
            times = own.ratio(peer, measure) if more else peer.ratio(own, measure)
            certain = times["lowest"] > 1 or times["highest"] < 1
            results.append({"peer": peer, "own": own, "measure": measure, "times": times, "certain": certain})
    return results
