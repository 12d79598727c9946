"""How long a GPU is at a graph's work, by its own clock."""

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

Event = TypeVar("Event")


class GpuClock(Generic[Event]):
    """Adds up the seconds between pairs of events, one pair around each part of a batch; off until it is started.

    So what a stream waits for before a part, such as pixels that the host has still to send, is not in it.
    """

    def __init__(self, record: Callable[[], Event], seconds: Callable[[Event, Event], float]) -> None:
        """``record`` puts an event on the stream, ``seconds`` is what lies between two that were reached."""
        self._record, self._seconds = record, seconds
        self._spans: list[tuple[Event, Event]] | None = None
        self._begun: Event | None = None

    def start(self) -> None:
        """Begin from nothing."""
        self._spans = []

    def stop(self) -> float:
        """Return the seconds since it was started, and be off. All work must be done: a graph's call has returned."""
        spans, self._spans = self._spans or [], None
        return sum(self._seconds(*span) for span in spans)

    def begin(self) -> None:
        """Mark where a part's work begins."""
        if self._spans is not None:
            self._begun = self._record()

    def end(self) -> None:
        """Mark where it ends."""
        if self._spans is not None and self._begun is not None:
            self._spans.append((self._begun, self._record()))
            self._begun = None


@runtime_checkable
class Clocked(Protocol):
    """A graph that has such a clock."""

    clock: GpuClock[Any]
