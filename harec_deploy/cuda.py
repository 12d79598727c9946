"""Memory, streams and graphs of one GPU, over cuda-core: no other framework is needed.

Copies, launches and waits are put on a stream and done later, in its order; only ``sync`` waits for the GPU. cuda-core
is imported when a GPU is opened, so this module can be imported anywhere.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from cuda.core import Buffer
    from cuda.core import Event as CoreEvent
    from cuda.core import Stream as CoreStream
    from cuda.core.graph import Graph as CoreGraph

ALIGNMENT_BYTES = 256  # of device memory; TensorRT asks for it
_DL_CUDA, _DL_CUDA_MANAGED = 2, 13  # DLDeviceType in dlpack.h


class Gpu:
    """One GPU. It is current for the thread that opened it; other threads call ``use`` first."""

    def __init__(self, index: int) -> None:
        """Open the GPU of this number. Raises DeviceError if it cannot be, ModuleNotFoundError without cuda-core."""
        from cuda.core import Device, LegacyPinnedMemoryResource

        self.index = index
        try:
            self._device = Device(index)
        except (ValueError, RuntimeError) as error:  # no such number; no driver
            raise DeviceError(f"cuda:{index} cannot be opened: {error}; --device cpu does without") from None
        with _told():
            self._device.set_current()
            self._pinned = LegacyPinnedMemoryResource()  # the other kind needs a driver with pools of host memory

    def use(self) -> None:
        """Make this GPU current for the calling thread."""
        with _told():
            self._device.set_current()

    def stream(self) -> "Stream":
        """Return a new stream, which waits for no other."""
        with _told():
            return Stream(self._device.create_stream())

    def allocate(self, size_bytes: int, stream: "Stream") -> "Memory":
        """Return device memory, aligned to ALIGNMENT_BYTES, to be used on ``stream``, elsewhere after its ``sync``.

        Raises:
            MemoryError: there is not so much free.
        """
        with _told():
            memory = Memory(self._device.allocate(size_bytes, stream=stream.core))
        if memory.address % ALIGNMENT_BYTES:
            raise DeviceError(f"CUDA gave memory at {memory.address:#x}: it must be aligned to {ALIGNMENT_BYTES} bytes")
        return memory

    def pinned(self, size_bytes: int) -> "Memory":
        """Return host memory that the GPU copies from and to by itself. Raises MemoryError."""
        with _told():
            return Memory(self._pinned.allocate(size_bytes))

    def view(self, array: Any, stream: "Stream") -> "DeviceArray | None":
        """Return an array that speaks DLPack where it lies on this GPU; None if it lies in host memory.

        ``stream`` will wait for what the array's owner is still writing. Keep ``array`` until what reads it is done.

        Raises:
            UsageError: it lies on another GPU, has gaps between its values, or a type that NumPy does not know.
        """
        from cuda.core.utils import StridedMemoryView

        kind, index = array.__dlpack_device__()
        if int(kind) not in (_DL_CUDA, _DL_CUDA_MANAGED):
            return None
        if index != self.index:
            raise UsageError(f"the array lies on cuda:{index}: move it to cuda:{self.index} first")
        with _told():
            view = StridedMemoryView.from_dlpack(array, stream.handle)
        try:
            dtype = np.dtype(view.dtype)
        except NotImplementedError as error:
            raise UsageError(f"the array on cuda:{index} has a type that NumPy does not know: {error}") from None
        if not packed(view.shape, view.strides):
            raise UsageError(f"the array {tuple(view.shape)} on cuda:{index} has gaps: make it contiguous first")
        size_bytes = int(np.prod(view.shape, dtype=np.int64)) * dtype.itemsize
        return DeviceArray(_borrow(view.ptr, size_bytes, view), tuple(view.shape), dtype)


class Memory:
    """A block of memory that the GPU can reach; it is freed with the last reference to it or to a part of it.

    address: where it begins. size_bytes: its length.
    """

    def __init__(self, buffer: "Buffer") -> None:
        self._buffer = buffer
        self.address = int(buffer.handle)
        self.size_bytes = int(buffer.size)

    def part(self, start: int, size_bytes: int) -> "Memory":
        """Return ``size_bytes`` of it, from byte ``start`` on."""
        if not 0 <= start <= start + size_bytes <= self.size_bytes:
            raise ValueError(f"bytes {start} to {start + size_bytes} of {self.size_bytes}")
        return _borrow(self.address + start, size_bytes, self._buffer)

    def host(self) -> NDArray[np.uint8]:
        """Return pinned memory as an array uint8 (size_bytes,), which keeps it alive. Raises ValueError for other."""
        if not self._buffer.is_host_accessible:
            raise ValueError("only pinned memory can be read by the host")
        block = (ctypes.c_uint8 * self.size_bytes).from_address(self.address)
        block.owner = self._buffer  # type: ignore[attr-defined]
        return np.ctypeslib.as_array(block)

    def copy_from(self, source: "Memory", stream: "Stream") -> None:
        """Put a copy of all of ``source``, which has the same size, on the stream."""
        with _told():
            self._buffer.copy_from(source._buffer, stream=stream.core)

    def fill(self, value: int, stream: "Stream") -> None:
        """Put setting every byte to ``value``, 0 to 255, on the stream."""
        with _told():
            self._buffer.fill(value, stream=stream.core)


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array that somebody else keeps on the GPU: values without gaps, last axis fastest."""

    memory: Memory
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Event:
    """A point in the work of a stream."""

    def __init__(self, core: "CoreEvent") -> None:
        self.core = core

    def sync(self) -> None:
        """Wait until the stream has come to it."""
        with _told():
            self.core.sync()

    def seconds_since(self, begun: "Event") -> float:
        """Return the GPU's time between two points that it has come to, both of them recorded ``timed``."""
        with _told():
            return float(self.core - begun.core) / 1e3


class Stream:
    """Work for the GPU that is done in order. handle: the address that other libraries take."""

    def __init__(self, core: "CoreStream") -> None:
        self.core = core
        self.handle = int(core.handle)

    def sync(self) -> None:
        """Wait until all that was put on it is done."""
        with _told():
            self.core.sync()

    def record(self, *, timed: bool = False) -> Event:
        """Return the point that follows what was put on it so far; timed: note when the GPU comes to it."""
        from cuda.core import EventOptions

        with _told():
            return Event(self.core.record(options=EventOptions(timing_enabled=timed)))

    def wait(self, event: Event) -> None:
        """Let what is put on it from now on wait for ``event``."""
        with _told():
            self.core.wait(event.core)

    def capture(self, work: Callable[[], None]) -> "Graph":
        """Record what ``work`` puts on this stream, and do not do it.

        The graph holds addresses only: keep the memory as long as it.

        Raises:
            DeviceError: something in it cannot be recorded; the stream can be used again. What ``work`` raises.
        """
        builder = self.core.create_graph_builder()
        try:
            with _told():
                builder.begin_building("thread_local")  # what other threads do meanwhile does not matter
                work()
                builder.end_building()
                return Graph(builder.complete())
        finally:
            try:
                with _told():
                    builder.close()  # ends a recording that has failed, and says once more that it has
            except DeviceError:
                pass


class Graph:
    """Recorded work that is put on a stream at once."""

    def __init__(self, core: "CoreGraph") -> None:
        self._core = core

    def launch(self, stream: Stream) -> None:
        """Put all of it on the stream."""
        with _told():
            self._core.launch(stream.core)


def packed(shape: Sequence[int], strides: Sequence[int] | None) -> bool:
    """Tell whether an array of these strides, in values, has no gaps and its last axis is the fastest."""
    if strides is None or 0 in shape:
        return True
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _borrow(address: int, size_bytes: int, owner: object) -> Memory:
    """Return a block of memory that belongs to ``owner``, who is kept alive."""
    from cuda.core import Buffer

    return Memory(Buffer.from_handle(address, size_bytes, owner=owner))


@contextmanager
def _told() -> Iterator[None]:
    """Turn what cuda-core raises into errors of ours, one line each."""
    from cuda.core._utils.cuda_utils import CUDAError  # it has no public name

    try:
        yield
    except (CUDAError, RuntimeError) as error:
        text = " ".join(str(error).split())
        if "CUDA_ERROR_OUT_OF_MEMORY" in text:
            raise MemoryError(text) from None
        raise DeviceError(f"the GPU or its driver fails: {text}; --device cpu does without") from None
