"""A GPU in host memory, in the place of ``harec_deploy.cuda.Gpu``: what is put on a stream is done as late as possible.

So a missing wait or a buffer that is used too early gives wrong results: a copy reads what is there when it is done,
not when it was put on the stream, and fresh memory is full of 0xFF, which is NaN. ``Machine.eager`` names streams whose
work is done as early as possible instead, for what goes wrong only then.
"""

import ctypes
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.cuda import ALIGNMENT_BYTES, DeviceArray
from harec_deploy.devices import CudaDevice
from harec_deploy.errors import DeviceError


class Machine:
    """What the fake GPU has and can do.

    memory_bytes: of the device. capture: whether work can be recorded. eager: the numbers of streams, from 0 in the
    order in which they are made, whose work is done at once where it waits for nothing.
    """

    def __init__(self, *, memory_bytes: int = 1 << 40, capture: bool = True, eager: tuple[int, ...] = ()) -> None:
        self.memory_bytes, self.capture, self.eager = memory_bytes, capture, eager
        self.device: dict[int, int] = {}  # address -> size of what is allocated
        self.streams: list[Stream] = []
        self.launches = 0
        self.current = False

    def lies_on_device(self, address: int, size_bytes: int) -> bool:
        return any(start <= address and address + size_bytes <= start + size for start, size in self.device.items())

    def stream(self, handle: int) -> "Stream":
        """Return a stream by its handle, as a library does that is given one."""
        return next(stream for stream in self.streams if stream.handle == handle)


MACHINE = Machine()
GPU = CudaDevice(0, "Fake H100", (9, 0), 1 << 40, (13, 0))  # what the driver says of it


class Gpu:
    def __init__(self, index: int) -> None:
        self.index = index

    def use(self) -> None:
        MACHINE.current = True

    def stream(self) -> "Stream":
        return Stream()

    def allocate(self, size_bytes: int, stream: "Stream") -> "Memory":
        if sum(MACHINE.device.values()) + size_bytes > MACHINE.memory_bytes:
            raise MemoryError(f"CUDA_ERROR_OUT_OF_MEMORY: {size_bytes} bytes")
        memory = Memory(_block(size_bytes), on_host=False)
        MACHINE.device[memory.address] = size_bytes
        # With the array that parts share, not with this object.
        weakref.finalize(memory.array.base, MACHINE.device.pop, memory.address)
        return memory

    def pinned(self, size_bytes: int) -> "Memory":
        return Memory(_block(size_bytes), on_host=True)

    def view(self, array: Any, stream: "Stream") -> "DeviceArray | None":
        return array.view(stream) if isinstance(array, OnGpu) else None


def _block(size_bytes: int) -> NDArray[np.uint8]:
    room = np.full(size_bytes + ALIGNMENT_BYTES, 0xFF, dtype=np.uint8)
    start = -room.ctypes.data % ALIGNMENT_BYTES
    return room[start : start + size_bytes]


class Memory:
    def __init__(self, array: NDArray[np.uint8], *, on_host: bool) -> None:
        self.array, self.on_host = array, on_host
        self.address, self.size_bytes = array.ctypes.data, array.nbytes

    def part(self, start: int, size_bytes: int) -> "Memory":
        if not 0 <= start <= start + size_bytes <= self.size_bytes:
            raise ValueError(f"bytes {start} to {start + size_bytes} of {self.size_bytes}")
        return Memory(self.array[start : start + size_bytes], on_host=self.on_host)

    def host(self) -> NDArray[np.uint8]:
        if not self.on_host:
            raise ValueError("only pinned memory can be read by the host")
        return self.array

    def copy_from(self, source: "Memory", stream: "Stream") -> None:
        if source.size_bytes != self.size_bytes:
            raise ValueError(f"a copy of {source.size_bytes} bytes to {self.size_bytes}")
        stream.put(lambda: ctypes.memmove(self.address, source.address, self.size_bytes))

    def fill(self, value: int, stream: "Stream") -> None:
        stream.put(lambda: self.array.fill(value))


class Event:
    def __init__(self, stream: "Stream", *, timed: bool = False) -> None:
        self.stream, self.done, self.timed = stream, False, timed
        self.at_s = 0.0

    def finish(self) -> None:
        self.done, self.at_s = True, time.perf_counter()

    def seconds_since(self, begun: "Event") -> float:
        if not (self.timed and begun.timed):
            raise DeviceError("CUDA_ERROR_INVALID_HANDLE: timing is disabled in an event")
        if not (self.done and begun.done):
            raise DeviceError("CUDA_ERROR_NOT_READY: an event was not reached")
        return self.at_s - begun.at_s

    def sync(self) -> None:
        self.stream.advance(until=self)


class _Wait:
    """Work that is done when another stream has come to an event."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self) -> None:
        self.event.sync()


class Stream:
    def __init__(self) -> None:
        self.eager = len(MACHINE.streams) in MACHINE.eager
        self.handle = 0x1000 + 0x10 * len(MACHINE.streams)
        self.waiting: deque[Callable[[], object]] = deque()
        self.recording: list[Callable[[], object]] | None = None
        MACHINE.streams.append(self)

    def put(self, work: Callable[[], object]) -> None:
        if self.recording is not None:
            self.recording.append(work)
            return
        self.waiting.append(work)
        while self.eager and self.waiting:
            work = self.waiting[0]
            if isinstance(work, _Wait) and not work.event.done:
                break
            self.waiting.popleft()()

    def advance(self, until: Event | None = None) -> None:
        if self.recording is not None:
            raise DeviceError("a stream cannot be waited for while it is recorded")
        while self.waiting and not (until and until.done):
            self.waiting.popleft()()

    def sync(self) -> None:
        self.advance()

    def record(self, *, timed: bool = False) -> Event:
        event = Event(self, timed=timed)
        self.put(event.finish)
        return event

    def wait(self, event: Event) -> None:
        self.put(_Wait(event))

    def capture(self, work: Callable[[], None]) -> "Graph":
        self.recording = []
        try:
            work()
            if not MACHINE.capture:
                raise DeviceError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: the operation is not permitted")
            return Graph(self.recording)
        finally:
            self.recording = None


class Graph:
    def __init__(self, work: list[Callable[[], object]]) -> None:
        self.work = work

    def launch(self, stream: Stream) -> None:
        MACHINE.launches += 1
        for each in self.work:
            stream.put(each)


class OnGpu:
    """An array in the fake GPU's memory that speaks as much DLPack as the runner asks for.

    Its values come late: its owner has put them on a stream of its own.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.owner = Stream()
        self.memory = Gpu(0).allocate(array.nbytes, self.owner)
        self.shape, self.dtype = array.shape, array.dtype
        source = Memory(np.frombuffer(array.tobytes(), dtype=np.uint8), on_host=True)
        self.memory.copy_from(source, self.owner)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def view(self, stream: Stream) -> DeviceArray:
        stream.wait(self.owner.record())
        return DeviceArray(self.memory, self.shape, self.dtype)  # type: ignore[arg-type]
