"""What a labelling run came to, for people and for machines."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harec_deploy.label.engine import Stages
from harec_deploy.label.journal import Row


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    rows: of every input that has one, whether labelled now or before; todo: how many inputs have none yet.
    statuses, errors: how many rows are ok, partial and failed, and have each error code; examples: a row of each code.
    done: how many were labelled now; media_s: their length.
    stopped: why the run ended before all was done, or "".
    not_annotated: (path, reason) of labelled videos of which no copy could be made.
    """

    rows: Sequence[Row]
    statuses: Counter[str]
    errors: Counter[str]
    examples: dict[str, Row]
    todo: int
    done: int
    media_s: float
    stages: Stages
    ignored: Counter[str]
    stopped: str
    not_annotated: list[tuple[str, str]] = field(default_factory=list)

    @property
    def videos_per_s(self) -> float:
        """Videos of this run a second of wall time."""
        return self.done / self.stages.wall_s if self.stages.wall_s else 0.0

    @property
    def times_real_time(self) -> float:
        """Seconds of video a second of wall time."""
        return self.media_s / self.stages.wall_s if self.stages.wall_s else 0.0

    def facts(self) -> dict[str, Any]:
        """Return the summary for machines."""
        return {
            "statuses": self.statuses,
            "errors": self.errors,
            "ignored": self.ignored,
            "done": self.done,
            "todo": self.todo,
            "stopped": self.stopped,
            "not_annotated": self.not_annotated,
            "videos_per_s": self.videos_per_s,
            "times_real_time": self.times_real_time,
            "bound_by": self.stages.bound_by(),
            "stages": self.stages,
        }


@dataclass(slots=True)
class Tally:
    """What became of the videos of this run so far."""

    done: int = 0
    failed: int = 0
    media_s: float = 0.0
    stopped: str = ""

    def add(self, row: Row) -> None:
        """Count a row."""
        self.done += 1
        self.failed += row.status == "failed"
        self.media_s += row.duration_s or 0.0


def counted(rows: Iterable[Row]) -> tuple[Counter[str], Counter[str], dict[str, Row]]:
    """Return how many rows have each status and each error code, and the first row of each code."""
    statuses, errors, examples = Counter[str](), Counter[str](), dict[str, Row]()
    for row in rows:
        statuses[row.status] += 1
        if row.error:
            errors[row.error["code"]] += 1
            examples.setdefault(row.error["code"], row)
    return statuses, errors, examples
