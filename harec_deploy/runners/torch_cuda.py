"""A PyTorch module on a GPU: copies beside computing, CUDA graphs, and fewer rows at a time when memory runs out."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harec_deploy.errors import BundleError
from harec_deploy.models.encoders import one_line
from harec_deploy.runners.gpu_clock import GpuClock
from harec_deploy.runners.parts import OutOfMemory, Parts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a graph takes: type, and shape behind the first axis."""

    dtype: Literal["uint8", "float32"]
    shape: tuple[int, ...]

    def expect(self, batch: Any) -> None:
        """Raise BundleError for an array or tensor of another shape or type, and for one without rows."""
        dtype, shape = str(batch.dtype).removeprefix("torch."), tuple(batch.shape)
        if dtype != self.dtype or shape[1:] != self.shape or not shape[0]:
            wanted = ", ".join(map(str, ("N", *self.shape)))
            raise BundleError(f"the graph takes {self.dtype} ({wanted}), got {dtype} {shape}")

    def memory(self, count: int, **where: Any) -> Tensor:
        """Return uninitialised memory for ``count`` rows, as torch.empty takes it."""
        return torch.empty((count, *self.shape), dtype=getattr(torch, self.dtype), **where)


@dataclass(slots=True)
class _Slot:
    """Memory for a part on its way: pinned on the host, and on the GPU; and when each may be written again."""

    host: Tensor
    device: Tensor
    sent: torch.cuda.Event = field(default_factory=torch.cuda.Event)
    used: torch.cuda.Event = field(default_factory=torch.cuda.Event)


@dataclass(slots=True)
class _Bucket:
    """The module for one batch size: its input, and the graph that makes ``output`` of it, if it could be captured."""

    input: Tensor
    output: Tensor
    graph: torch.cuda.CUDAGraph | None = None


class CudaGraph:
    """A module as a graph of a bundle.

    A part is padded to a power of two, so that few sizes are prepared, and each is captured as a CUDA graph. While one
    part is computed the next is copied.

    name: in the words that a person reads. limit: rows at a time, a power of two. capture: make CUDA graphs.
    clock: of the stream that computes.
    """

    def __init__(
        self, name: str, module: nn.Module, rows: Rows, device: torch.device, limit: int, *, capture: bool = True
    ) -> None:
        self.parts = Parts(name, limit)
        self.capture = capture
        self._module = module
        self._rows = rows
        self._device = device
        self._stream, self._copies = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        self.clock = GpuClock(partial(_timed_event, self._stream), _seconds)
        self._pool = torch.cuda.graph_pool_handle()
        self._buckets: dict[int, _Bucket] = {}
        self._slots: list[_Slot] = []

    def __call__(self, batch: Any) -> NDArray[np.float32]:
        """Run the module on a NumPy array, or on a tensor of the GPU that speaks DLPack, which is not copied.

        Raises:
            BundleError: a batch of another shape or type, no memory for a single row, or what CUDA says.
        """
        try:
            with torch.inference_mode(), torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                if not isinstance(batch, np.ndarray):
                    batch = torch.utils.dlpack.from_dlpack(batch)
                    batch = batch if batch.is_cuda else batch.numpy()
                self._rows.expect(batch)
                results = self.parts.feed(batch, self._submit)
                self._stream.synchronize()
        except RuntimeError as error:
            raise BundleError(f"PyTorch cannot run {self.parts.name}: {one_line(error)}") from None
        return np.concatenate([result.numpy() for result in results])

    def _submit(self, part: Any) -> Tensor:
        """Return pinned memory that holds the result of ``part`` as soon as the stream has come there."""
        count = len(part)
        try:
            bucket = self._bucket(1 << (count - 1).bit_length())
            if isinstance(part, Tensor):
                self.clock.begin()
                bucket.input[:count].copy_(part)
            else:
                slot = self._send(part)
                self.clock.begin()
                bucket.input[:count].copy_(slot.device[:count])
                slot.used.record(self._stream)
            if bucket.graph:
                bucket.graph.replay()
            else:
                bucket.output = self._module(bucket.input)
            result = torch.empty((count, *bucket.output.shape[1:]), dtype=torch.float32, pin_memory=True)
            result.copy_(bucket.output[:count], non_blocking=True)
            self.clock.end()
            return result
        except torch.OutOfMemoryError:
            self._release()
            raise OutOfMemory from None

    def _send(self, part: NDArray[Any]) -> _Slot:
        """Begin to copy a part to the GPU, and let the computing wait for it."""
        if len(self._slots) < 2:
            limit, rows = self.parts.limit, self._rows
            self._slots.append(_Slot(rows.memory(limit, pin_memory=True), rows.memory(limit, device=self._device)))
            # The stream may not be done with what lay in this memory before.
            self._slots[-1].used.record(self._stream)
        else:
            self._slots.reverse()
        slot = self._slots[-1]
        count = len(part)
        slot.sent.synchronize()  # the copy before the last has read the host's memory
        slot.host[:count].numpy()[...] = part
        self._copies.wait_event(slot.used)
        with torch.cuda.stream(self._copies):
            slot.device[:count].copy_(slot.host[:count], non_blocking=True)
            slot.sent.record(self._copies)
        self._stream.wait_event(slot.sent)
        return slot

    def _bucket(self, count: int) -> _Bucket:
        """Return what runs ``count`` rows, made when it is first asked for."""
        if count not in self._buckets:
            zeros = self._rows.memory(count, device=self._device).zero_()
            for _ in range(2):  # libraries choose kernels and take memory in their first calls, which no graph may hold
                output = self._module(zeros)
            bucket = _Bucket(zeros, output)
            if self.capture:
                self._capture(bucket)
            self._buckets[count] = bucket
        return self._buckets[count]

    def _capture(self, bucket: _Bucket) -> None:
        """Make a CUDA graph of the bucket; where that fails this module is called without graphs from now on."""
        graph = torch.cuda.CUDAGraph()
        self._stream.synchronize()
        try:
            # Errors of other threads, which may use CUDA on their own, are not ours.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = self._module(bucket.input)
        except RuntimeError as error:
            causes = (error, error.__context__)
            if any(isinstance(cause, torch.OutOfMemoryError) for cause in causes):
                raise torch.OutOfMemoryError(one_line(error)) from None
            self.capture = False
            logger.warning("%s runs without CUDA graphs: %s", self.parts.name, one_line(error))
        else:
            bucket.output, bucket.graph = output, graph

    def _release(self) -> None:
        """Give back what the buckets hold; what was submitted before has its result then."""
        self._copies.synchronize()
        self._stream.synchronize()
        self._buckets.clear()
        self._slots.clear()
        torch.cuda.empty_cache()


def _timed_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


def _seconds(begun: torch.cuda.Event, ended: torch.cuda.Event) -> float:
    return float(begun.elapsed_time(ended)) / 1e3
