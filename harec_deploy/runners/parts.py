"""A batch in parts: as large as a runtime computes fastest, and as a GPU's memory holds."""

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from harec_deploy.errors import BundleError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

CPU_FRAMES = 16  # that a CPU computes at a time: more gains nothing and needs memory


def takes_frames(shape: Sequence[Any]) -> bool:
    """Tell whether a graph with this input takes frames (N, H, W, 3), which come many at a time; clips are few."""
    return len(shape) == 4


def cpu_rows(shape: Sequence[Any]) -> int:
    """Return how many rows of a graph's input a CPU computes at a time."""
    return CPU_FRAMES if takes_frames(shape) else sys.maxsize


class OutOfMemory(Exception):
    """A device has no memory for a part; raised to ``Parts`` by what runs it, and by nothing else."""


class Parts:
    """Feeds batches to a graph in parts of at most ``limit`` rows, fewer once memory has run out.

    name: the graph and its device, in the words that a person reads.
    """

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit

    def feed(self, batch: Any, run: Callable[[Any], Result]) -> list[Result]:
        """Return what ``run`` gave for each part, in their order; one that raised OutOfMemory is halved and run again.

        batch: has a length and can be sliced.

        Raises:
            BundleError: there is no memory for a single row.
        """
        results: list[Result] = []
        wanted, done = self.limit, 0
        while done < len(batch):
            part = batch[done : done + self.limit]
            try:
                results.append(run(part))
            except OutOfMemory:
                if len(part) == 1:
                    raise BundleError(f"{self.name} has no memory for a batch of 1: free some or use another") from None
                self.limit = len(part) // 2
                continue
            done += len(part)
        if self.limit < wanted:
            logger.warning("%s has no memory for batches of %d: going on with %d", self.name, wanted, self.limit)
        return results
