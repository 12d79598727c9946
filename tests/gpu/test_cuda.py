"""harec_deploy.cuda on a GPU: what is put on streams happens, in order, and nothing else does."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from harec_deploy.cuda import ALIGNMENT_BYTES, Gpu, Memory, Stream
from harec_deploy.devices import cuda_devices
from harec_deploy.errors import DeviceError, UsageError

pytestmark = pytest.mark.gpu
SIZE = 1 << 20


@pytest.fixture
def gpu() -> Gpu:
    if find_spec("cuda") is None or find_spec("cuda.core") is None:
        pytest.skip("cuda-core is not installed")
    return Gpu(0)


def bytes_of(memory: Memory, gpu: Gpu, stream: Stream) -> np.ndarray:
    """Return a copy of device memory on the host."""
    pinned = gpu.pinned(memory.size_bytes)
    pinned.copy_from(memory, stream)
    stream.sync()
    return pinned.host().copy()


def test_bytes_go_there_and_back(gpu: Gpu) -> None:
    stream = gpu.stream()
    assert stream.handle != 0
    sent = gpu.pinned(SIZE)
    sent.host()[:] = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    there = gpu.allocate(SIZE, stream)
    assert there.size_bytes == SIZE
    there.copy_from(sent, stream)
    np.testing.assert_array_equal(bytes_of(there, gpu, stream), sent.host())


@pytest.mark.parametrize("size", [1, 255, 257, 1000003])
def test_memory_of_any_size_is_aligned(gpu: Gpu, size: int) -> None:
    stream = gpu.stream()
    blocks = [gpu.allocate(size, stream) for _ in range(4)]
    assert {block.address % ALIGNMENT_BYTES for block in blocks} == {0}
    assert len({block.address for block in blocks}) == 4


def test_a_part_is_a_view_that_keeps_the_whole(gpu: Gpu) -> None:
    stream = gpu.stream()
    whole = gpu.allocate(1024, stream)
    whole.fill(1, stream)
    part = whole.part(256, 512)
    part.fill(2, stream)
    expected = np.repeat(np.array([1, 2, 1], np.uint8), [256, 512, 256])
    np.testing.assert_array_equal(bytes_of(whole, gpu, stream), expected)
    del whole
    np.testing.assert_array_equal(bytes_of(part, gpu, stream), 2)
    for start, size in ((-1, 2), (0, 513), (500, 13)):
        with pytest.raises(ValueError, match=f"bytes {start} to {start + size} of 512"):
            part.part(start, size)


def test_the_host_cannot_read_device_memory(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="only pinned memory can be read by the host"):
        gpu.allocate(16, gpu.stream()).host()


def test_a_stream_waits_for_another(gpu: Gpu) -> None:
    first, second = gpu.stream(), gpu.stream()
    source, target = gpu.allocate(64 * SIZE, first), gpu.allocate(64 * SIZE, second)
    first.sync()
    second.sync()
    for value in range(1, 30):
        source.fill(value, first)
        second.wait(first.record())
        target.copy_from(source, second)
        done = second.record()
        first.wait(done)
        done.sync()
        np.testing.assert_array_equal(bytes_of(target.part(63 * SIZE, 16), gpu, second), value)


def test_events_tell_how_long_the_gpu_works(gpu: Gpu) -> None:
    stream = gpu.stream()
    memory = gpu.allocate(256 * SIZE, stream)
    stream.sync()
    took: list[float] = []
    for count in (1, 50):
        begun = stream.record(timed=True)
        for value in range(count):
            memory.fill(value, stream)
        ended = stream.record(timed=True)
        ended.sync()
        took.append(ended.seconds_since(begun))
    assert 0 < took[0] < took[1] < 1
    assert took[1] > 50 * 256 * SIZE / 20e12  # no memory is written at 20 TB/s
    plain = stream.record()
    plain.sync()
    with pytest.raises(DeviceError, match="the GPU or its driver fails"):
        plain.seconds_since(begun)


def test_a_graph_does_later_what_was_recorded(gpu: Gpu) -> None:
    stream = gpu.stream()
    source, target = gpu.allocate(SIZE, stream), gpu.allocate(SIZE, stream)
    source.fill(1, stream)
    target.fill(2, stream)
    stream.sync()

    def work() -> None:
        target.copy_from(source, stream)
        source.fill(7, stream)

    graph = stream.capture(work)
    np.testing.assert_array_equal(bytes_of(target, gpu, stream), 2)  # nothing was done yet
    for value in (1, 7):
        graph.launch(stream)
        np.testing.assert_array_equal(bytes_of(target, gpu, stream), value)
    source.fill(9, stream)
    graph.launch(stream)
    np.testing.assert_array_equal(bytes_of(target, gpu, stream), 9)


def test_what_cannot_be_recorded_is_an_error_and_the_stream_goes_on(gpu: Gpu) -> None:
    stream = gpu.stream()
    memory = gpu.allocate(SIZE, stream)
    stream.sync()
    with pytest.raises(DeviceError, match=r"the GPU or its driver fails: .*CAPTURE"):
        stream.capture(stream.sync)
    memory.fill(3, stream)
    np.testing.assert_array_equal(bytes_of(memory, gpu, stream), 3)

    def broken() -> None:
        memory.fill(4, stream)
        raise KeyError("in the middle")

    with pytest.raises(KeyError, match="in the middle"):
        stream.capture(broken)
    np.testing.assert_array_equal(bytes_of(memory, gpu, stream), 3)
    memory.fill(5, stream)
    np.testing.assert_array_equal(bytes_of(memory, gpu, stream), 5)


def test_more_memory_than_there_is(gpu: Gpu) -> None:
    stream = gpu.stream()
    (first, *_) = cuda_devices()
    with pytest.raises(MemoryError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        gpu.allocate(4 * first.memory_bytes, stream)
    memory = gpu.allocate(SIZE, stream)
    memory.fill(1, stream)
    np.testing.assert_array_equal(bytes_of(memory, gpu, stream), 1)


def test_no_such_gpu(gpu: Gpu) -> None:
    with pytest.raises(DeviceError, match=f"cuda:{len(cuda_devices())} cannot be opened: "):
        Gpu(len(cuda_devices()))


class TestDlpack:
    @pytest.fixture
    def torch(self) -> Any:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA")
        return torch

    def test_an_array_of_torch_is_read_where_it_lies(self, gpu: Gpu, torch: Any) -> None:
        stream = gpu.stream()
        for _ in range(20):  # torch's stream may still be writing when ours is told to read
            tensor = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8, device="cuda:0").flip(0).contiguous()
            array = gpu.view(tensor, stream)
            assert array is not None
            assert (array.memory.address, array.shape) == (tensor.data_ptr(), (64, 32, 32, 3))
            assert array.dtype == np.uint8
            read = bytes_of(array.memory, gpu, stream).reshape(array.shape)
            np.testing.assert_array_equal(read, tensor.cpu().numpy())

    def test_one_in_host_memory_is_left_to_numpy(self, gpu: Gpu, torch: Any) -> None:
        assert gpu.view(torch.zeros(3), gpu.stream()) is None

    def test_gaps_are_refused(self, gpu: Gpu, torch: Any) -> None:
        with pytest.raises(UsageError, match=r"\(4, 3\) on cuda:0 has gaps: make it contiguous first"):
            gpu.view(torch.zeros((3, 4), device="cuda:0").T, gpu.stream())
