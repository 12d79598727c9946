"""A TensorRT plan on one GPU, made to take any batch.

A bucket is a batch that the plan was tuned for: a context of its own, whose work is recorded as a CUDA graph. Rows are
padded to the smallest bucket that holds them, or split. The buckets take turns on one stream, so they share the buffers
and the scratch memory of the GPU. Two slots lie between host and GPU: while one batch is computed, the next is copied.

    host      pack slot 0 | pack slot 1           | take slot 0, pack it anew | ...
    copies                | 0 in          | 1 in                              | 0 in
    compute                       | engine, 0 out | engine, 1 out                    | engine, 0 out
"""

import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from harec_deploy import cuda
from harec_deploy.errors import BundleError, DeviceError
from harec_deploy.runners.gpu_clock import GpuClock
from harec_deploy.runners.tensorrt_plan import Bucket, Plan

SLOTS = 2


@dataclass(frozen=True, slots=True)
class _Ready:
    """A bucket that can run; graph: its work, recorded, or None where that was not possible."""

    rows: int
    context: "trt.IExecutionContext"
    graph: "cuda.Graph | None"


class _Slot:
    """Where a batch lies on its way: packed and returned on the host, sent on the GPU."""

    def __init__(self, gpu: "cuda.Gpu", stream: "cuda.Stream", given_bytes: int, returned_bytes: int) -> None:
        self.packed, self.returned = gpu.pinned(given_bytes), gpu.pinned(returned_bytes)
        self.packed_host, self.returned_host = self.packed.host(), self.returned.host()
        self.sent = gpu.allocate(given_bytes, stream)
        self.done: cuda.Event | None = None


class PlanGraph:
    """A plan as a graph of the runner protocol. One thread at a time computes; others wait.

    unrecorded: why it runs without CUDA graphs, or "". clock: of the stream that computes.
    """

    def __init__(self, gpu: "cuda.Gpu", plan: Plan, buckets: list[Bucket]) -> None:
        """Make ``buckets`` of a plan ready. Raises MemoryError (the GPU has too little), BundleError, DeviceError."""
        self.unrecorded = ""
        self._gpu, self._plan, self._lock = gpu, plan, threading.Lock()
        self._compute, self._copies = gpu.stream(), gpu.stream()
        # Of the stream, not of this graph: one that holds itself would keep its memory when it is given up.
        self.clock = GpuClock(partial(self._compute.record, timed=True), _seconds)
        given_bytes = buckets[-1].rows * plan.given.row_bytes
        returned_bytes = buckets[-1].rows * plan.returned.row_bytes
        engine: trt.ICudaEngine = plan.engine
        scratch_bytes = max(engine.get_device_memory_size_for_profile_v2(bucket.profile) for bucket in buckets)
        self._input = gpu.allocate(given_bytes, self._compute)
        self._output = gpu.allocate(returned_bytes, self._compute)
        self._scratch = gpu.allocate(max(scratch_bytes, cuda.ALIGNMENT_BYTES), self._compute)
        self._slots = [_Slot(gpu, self._copies, given_bytes, returned_bytes) for _ in range(SLOTS)]
        self._input.fill(0, self._compute)  # so that padding holds numbers
        self._compute.sync()
        self._copies.sync()
        self._ready = [self._make_ready(bucket) for bucket in buckets]

    def __call__(self, batch: Any) -> NDArray[np.float32]:
        """Run the plan on a batch of any length.

        batch: a NumPy array, or one that speaks DLPack: on this GPU it is read where it lies, without the host.

        Raises:
            BundleError: an array of another shape or type than the plan takes, or TensorRT fails.
            UsageError: an array on another GPU, or with gaps.
            DeviceError: the GPU or its driver fails, or has no memory left.
        """
        with self._lock:
            self._gpu.use()
            source = self._source(batch)
            results = np.empty((source.shape[0], *self._plan.returned.shape), dtype=np.float32)
            under_way: deque[tuple[_Slot, slice]] = deque()
            try:
                for turn, (rows, ready) in enumerate(self._parts(source.shape[0])):
                    if len(under_way) == SLOTS:
                        self._take(*under_way.popleft(), results)
                    slot = self._slots[turn % SLOTS]
                    self._put(slot, source, rows, ready)
                    under_way.append((slot, rows))
                while under_way:
                    self._take(*under_way.popleft(), results)
            except MemoryError as error:
                raise DeviceError(f"the GPU has no memory left: {error}; take smaller batches") from None
            finally:
                if under_way:  # it failed: nothing may still read or write the slots when the next batch comes
                    self._copies.sync()
                    self._compute.sync()
            return results

    def _source(self, batch: Any) -> "NDArray[Any] | cuda.DeviceArray":
        given = self._plan.given
        if isinstance(batch, np.ndarray):
            source: NDArray[Any] | cuda.DeviceArray = batch
        elif hasattr(batch, "__dlpack_device__"):
            source = self._gpu.view(batch, self._compute) or np.from_dlpack(batch)
        else:
            raise BundleError(f"a plan takes arrays, got {type(batch).__name__}")
        if source.dtype != given.dtype or len(source.shape) < 1 or source.shape[1:] != given.shape:
            wanted = f"{given.dtype} {('N', *given.shape)}".replace("'", "")
            raise BundleError(f"the plan takes {wanted}, got {source.dtype} {tuple(source.shape)}")
        return source

    def _parts(self, count: int) -> list[tuple[slice, _Ready]]:
        """Return the rows of a batch that go together, and the bucket that they go in."""
        parts: list[tuple[slice, _Ready]] = []
        start = 0
        while start < count:
            ready = next((each for each in self._ready if each.rows >= count - start), self._ready[-1])
            stop = min(start + ready.rows, count)
            parts.append((slice(start, stop), ready))
            start = stop
        return parts

    def _put(self, slot: _Slot, source: "NDArray[Any] | cuda.DeviceArray", rows: slice, ready: _Ready) -> None:
        """Send rows to the GPU, compute them and let the results come to the slot, all without waiting."""
        given, count = self._plan.given, rows.stop - rows.start
        size = count * given.row_bytes
        wanted = self._input.part(0, size)
        if isinstance(source, cuda.DeviceArray):
            self.clock.begin()
            wanted.copy_from(source.memory.part(rows.start * given.row_bytes, size), self._compute)
        else:
            np.copyto(slot.packed_host[:size].view(given.dtype).reshape(count, *given.shape), source[rows])
            sent = slot.sent.part(0, size)
            sent.copy_from(slot.packed.part(0, size), self._copies)
            self._compute.wait(self._copies.record())
            self.clock.begin()
            wanted.copy_from(sent, self._compute)  # a graph reads at one address; a copy inside the GPU costs nothing
        if ready.graph:
            ready.graph.launch(self._compute)
        else:
            self._enqueue(ready.context)
        size = count * self._plan.returned.row_bytes
        slot.returned.part(0, size).copy_from(self._output.part(0, size), self._compute)
        self.clock.end()
        slot.done = self._compute.record()

    def _take(self, slot: _Slot, rows: slice, results: NDArray[np.float32]) -> None:
        """Wait for a slot's results and put them in their rows."""
        returned, count = self._plan.returned, rows.stop - rows.start
        assert slot.done is not None
        slot.done.sync()
        got = slot.returned_host[: count * returned.row_bytes].view(returned.dtype)
        results[rows] = got.reshape(count, *returned.shape)

    def _make_ready(self, bucket: Bucket) -> _Ready:
        plan, need = self._plan, self._plan.recorder.need
        engine: trt.ICudaEngine = plan.engine
        # The scratch memory is ours, so that the buckets share it and too little of it is noticed before it is used.
        context: trt.IExecutionContext = engine.create_execution_context(
            strategy=trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        need(context is not None, "make a context")
        chosen = context.set_optimization_profile_async(bucket.profile, self._compute.handle)
        need(chosen, f"choose profile {bucket.profile}")
        self._compute.sync()
        given = (bucket.rows, *plan.given.shape)
        need(context.set_input_shape(plan.given.name, given), f"take batches of {bucket.rows}")
        plan.recorder.clear()
        context.set_device_memory(self._scratch.address, self._scratch.size_bytes)  # returns nothing, only reports
        need(not plan.recorder.num_errors(), f"use {self._scratch.size_bytes} bytes of scratch memory")
        for name, memory in ((plan.given.name, self._input), (plan.returned.name, self._output)):
            need(context.set_tensor_address(name, memory.address), f"use the memory for {name}")
        try:
            missing = context.infer_shapes()
        except RuntimeError:
            missing = [plan.returned.name]
        need(not missing, f"tell the shape of {', '.join(missing)}")
        returned = tuple(context.get_tensor_shape(plan.returned.name))
        if returned != (bucket.rows, *plan.returned.shape):
            raise BundleError(f"it gives {returned} for {given}")
        return _Ready(bucket.rows, context, self._record(context))

    def _record(self, context: "trt.IExecutionContext") -> "cuda.Graph | None":
        """Return the context's work as a graph; it runs once before, for what TensorRT does the first time only."""
        self._enqueue(context)
        self._compute.sync()
        try:
            return self._compute.capture(lambda: self._enqueue(context))
        except (BundleError, DeviceError, MemoryError) as error:
            self.unrecorded = self.unrecorded or str(error)
            return None

    def _enqueue(self, context: "trt.IExecutionContext") -> None:
        self._plan.recorder.need(context.execute_async_v3(self._compute.handle), "run the plan")


def _seconds(begun: "cuda.Event", ended: "cuda.Event") -> float:
    return ended.seconds_since(begun)
