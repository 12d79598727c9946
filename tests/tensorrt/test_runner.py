"""The TensorRT runner on a GPU and a TensorRT that are fake, and strict where the real ones only go wrong later."""

import inspect
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harec_deploy import cuda
from harec_deploy.bench import output
from harec_deploy.bench.engine import Settings, latency, throughput
from harec_deploy.bench.gpu import GpuTimes
from harec_deploy.bench.measure import Budget
from harec_deploy.errors import BundleError, DeviceError
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import get
from tests.attacks.tiny import FRAMES, SIDE, encoder
from tests.tensorrt import fake_cuda, fake_runtime
from tests.tensorrt.fake_cuda import Machine, OnGpu
from tests.tensorrt.plans import BUCKETS, VARIANT, engine_bundle, reference


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def features(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, FRAMES, 3)).astype(np.float32)


def loaded(folder: Path, **arguments: Any) -> tuple[dict[str, Any], Any]:
    """Return the graphs of a bundle that is written to ``folder``, and the runner."""
    bundle, runner = engine_bundle(folder / "bundle", **arguments), get("tensorrt", "cuda:0")
    (variant,) = bundle.spec.variants
    return runner.load(bundle, variant, precision="fp32"), runner  # type: ignore[return-value]


@pytest.mark.parametrize("eager", [(), (0,), (1,), (0, 1)], ids=["late", "compute early", "copies early", "early"])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9, 16, 17, 45])
def test_a_batch_of_any_length_gives_onnx_runtimes_features(
    machine: Machine, tmp_path: Path, eager: tuple[int, ...], count: int
) -> None:
    machine.eager = eager
    graphs, runner = loaded(tmp_path)
    got = graphs["encoder"](frames(count))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, reference("encoder", frames(count)) if count else np.zeros((0, 3)))
    np.testing.assert_array_equal(graphs["encoder"](frames(3, seed=2)), reference("encoder", frames(3, seed=2)))
    if count:
        np.testing.assert_array_equal(graphs["head"](features(count)), reference("head", features(count)))
    assert runner.notes == []


def test_results_are_the_callers_to_keep(machine: Machine, tmp_path: Path) -> None:
    graphs, _ = loaded(tmp_path)
    first = graphs["encoder"](frames(8))
    graphs["encoder"](frames(8, seed=1))
    np.testing.assert_array_equal(first, reference("encoder", frames(8)))


@pytest.mark.parametrize(("count", "launches"), [(1, 1), (3, 1), (8, 1), (9, 2), (17, 3), (19, 3), (24, 3)])
def test_each_part_of_a_batch_is_one_graph(machine: Machine, tmp_path: Path, count: int, launches: int) -> None:
    graphs, _ = loaded(tmp_path)
    assert machine.launches == 0
    graphs["encoder"](frames(count))
    assert machine.launches == launches


def test_a_batch_goes_in_the_smallest_bucket_that_holds_it(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.capture = False
    graphs, _ = loaded(tmp_path)
    sizes: list[int] = []
    execute = fake_runtime.IExecutionContext.execute_async_v3

    def noted(self: Any, stream_handle: int) -> bool:
        sizes.append(self.shapes["frames"][0])
        return execute(self, stream_handle)

    monkeypatch.setattr(fake_runtime.IExecutionContext, "execute_async_v3", noted)
    graphs["encoder"](frames(8 + 8 + 3))
    assert sizes == [8, 8, 4]


def test_each_bucket_has_the_profile_that_is_tuned_for_it(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    choose = fake_runtime.IExecutionContext.set_optimization_profile_async

    def noted(self: Any, profile_index: int, stream_handle: int) -> bool:
        chosen.append(profile_index)
        return choose(self, profile_index, stream_handle)

    monkeypatch.setattr(fake_runtime.IExecutionContext, "set_optimization_profile_async", noted)
    loaded(tmp_path)
    assert chosen == [0, 1, 2] * 2, "the ranged profile, 3, is not tuned for 8 rows alone"


def test_padding_is_of_numbers(machine: Machine, tmp_path: Path) -> None:
    graphs, _ = loaded(tmp_path)
    graphs["head"](features(3))
    padding = graphs["head"]._input.array.view(np.float32)[3 * FRAMES * 3 :]
    np.testing.assert_array_equal(padding, 0)


def test_only_a_ranged_profile_is_a_bucket_too(machine: Machine, tmp_path: Path) -> None:
    model = fake_runtime.plan(
        encoder().SerializeToString(), [{"frames": [[1, SIDE, SIDE, 3], [4, SIDE, SIDE, 3], [6, SIDE, SIDE, 3]]}]
    )
    graphs, _ = loaded(tmp_path, plans={"encoder": model})
    np.testing.assert_array_equal(graphs["encoder"](frames(7)), reference("encoder", frames(7)))
    assert machine.launches == 2


def test_without_graphs_it_runs_plainly_and_says_so_once(machine: Machine, tmp_path: Path) -> None:
    machine.capture = False
    graphs, runner = loaded(tmp_path)
    np.testing.assert_array_equal(graphs["encoder"](frames(19)), reference("encoder", frames(19)))
    assert machine.launches == 0
    assert [note.split(":")[0] for note in runner.notes] == ["encoder without CUDA graphs", "head without CUDA graphs"]
    assert "STREAM_CAPTURE_UNSUPPORTED" in runner.notes[0]


def test_memory_that_only_recording_has_none_of_does_not_make_batches_smaller(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = fake_runtime.IExecutionContext.execute_async_v3

    def refuse_recording(self: Any, stream_handle: int) -> bool:
        if machine.stream(stream_handle).recording is not None:
            return bool(self._refuse(fake_runtime.ErrorCodeTRT.FAILED_ALLOCATION, "not while recording"))
        return execute(self, stream_handle)

    monkeypatch.setattr(fake_runtime.IExecutionContext, "execute_async_v3", refuse_recording)
    graphs, runner = loaded(tmp_path)
    np.testing.assert_array_equal(graphs["encoder"](frames(9)), reference("encoder", frames(9)))
    assert runner.notes == [f"{name} without CUDA graphs: not while recording" for name in ("encoder", "head")]


ROW = SIDE * SIDE * 3
# input, output, scratch, and two slots of what is sent, as much as a bucket of 8 of the encoder takes
NEEDS = 8 * (3 * ROW + 12 + fake_runtime.ROW_SCRATCH_BYTES)


@pytest.mark.parametrize(
    ("share", "batch"), [(1.0, None), (0.9, 4), (0.4, 1)], ids=["enough", "for a smaller bucket", "for the smallest"]
)
def test_with_too_little_memory_the_batches_are_smaller(
    machine: Machine, tmp_path: Path, share: float, batch: int | None
) -> None:
    machine.memory_bytes = int(NEEDS * share)
    machine.current = True
    bundle, runner = engine_bundle(tmp_path / "bundle"), get("tensorrt", "cuda:0")
    from harec_deploy.runners.tensorrt_plan import Plan  # made of the fake's classes: not before it is there

    content = bundle.path(bundle.spec.variants[VARIANT].graphs["encoder"]).read_bytes()
    graph = runner._fitted("encoder", Plan(content))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(graph(frames(19)), reference("encoder", frames(19)))
    told = [] if batch is None else [f"encoder in batches of {batch}, not 8: cuda:0 has no memory for more"]
    assert runner.notes == told
    assert sum(machine.device.values()) <= NEEDS * (batch or 8) / 8, "what did not fit was not freed"


def test_no_memory_for_the_smallest_batch_is_an_error(machine: Machine, tmp_path: Path) -> None:
    machine.memory_bytes = 1000
    with pytest.raises(
        BundleError, match=r"encoder\.plan cannot be used: cuda:0 has no memory for batches of 1: CUDA_"
    ):
        loaded(tmp_path)


def test_memory_that_tensorrt_finds_missing_makes_batches_smaller(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute = fake_runtime.IExecutionContext.execute_async_v3

    def short_of_memory(self: Any, stream_handle: int) -> bool:
        if self.shapes.get("frames", (0,))[0] == 8:
            return bool(self._refuse(fake_runtime.ErrorCodeTRT.FAILED_ALLOCATION, "Requested size was 5 bytes."))
        return execute(self, stream_handle)

    monkeypatch.setattr(fake_runtime.IExecutionContext, "execute_async_v3", short_of_memory)
    graphs, runner = loaded(tmp_path)
    np.testing.assert_array_equal(graphs["encoder"](frames(9)), reference("encoder", frames(9)))
    assert runner.notes == ["encoder in batches of 4, not 8: cuda:0 has no memory for more"]


class TestClock:
    """What the GPU works of a call, by pairs of events."""

    @pytest.mark.parametrize("capture", [True, False])
    def test_each_part_is_timed_once_it_is_asked_for(self, machine: Machine, tmp_path: Path, capture: bool) -> None:
        machine.capture = capture
        encoder = loaded(tmp_path)[0]["encoder"]
        encoder(frames(17))
        assert encoder.clock.stop() == 0  # it was off
        encoder.clock.start()
        begun = time.perf_counter()
        np.testing.assert_array_equal(encoder(frames(17)), reference("encoder", frames(17)))
        wall_s, spans = time.perf_counter() - begun, list(encoder.clock._spans)
        assert len(spans) == 3  # of 8, 8 and 1
        assert 0 < encoder.clock.stop() < wall_s
        encoder(frames(17))
        assert encoder.clock.stop() == 0

    def test_frames_that_lie_on_the_gpu_are_timed_too(self, machine: Machine, tmp_path: Path) -> None:
        encoder = loaded(tmp_path)[0]["encoder"]
        encoder.clock.start()
        encoder(OnGpu(frames(3)))
        assert encoder.clock.stop() > 0

    def test_a_part_that_failed_leaves_no_half_of_a_pair(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = loaded(tmp_path)[0]["encoder"]
        encoder.clock.start()
        with monkeypatch.context() as patch:
            patch.setattr(fake_cuda.Graph, "launch", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                encoder(frames(3))
        encoder(frames(3))
        assert len(encoder.clock._spans) == 1
        assert encoder.clock.stop() > 0


class TestBench:
    """The figures of a bench on plans; how long the fake takes is the host's doing."""

    @pytest.fixture
    def bundle(self, machine: Machine, tmp_path: Path) -> Path:
        engine_bundle(tmp_path / "bundle", onnx_too=True)
        return tmp_path / "bundle"

    def settings(self, **more: Any) -> Settings:
        quick = Budget(seconds=0.05, warm_up_s=0.001, turn_s=0.001)
        return Settings(compare=("tensorrt", "openvino:fp32"), budget=quick, **more)

    def test_a_row_has_what_the_gpu_works_beside_the_wall(self, bundle: Path) -> None:
        result = latency(bundle, self.settings(batches=(1, 2), streams=(1, 2)))
        for row in result.rows:
            assert ("gpu_ms" in row) == (row["runner"] == "tensorrt" and row["streams"] == 1)
        assert all(row["gpu_ms"] > 0 for row in result.rows if "gpu_ms" in row)
        assert "GPU ms" in output.as_markdown(result)
        rows = throughput(bundle, self.settings()).rows
        assert {row["runner"] for row in rows if row.get("gpu_ms", 0) > 0} == {"tensorrt"}

    def test_a_call_that_waits_for_the_host_is_told(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        predict = Recognizer.predict

        def slow(self: Recognizer, clips: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return predict(self, clips)

        monkeypatch.setattr(Recognizer, "predict", slow)
        notes = latency(bundle, self.settings()).notes
        (told,) = [note for note in notes if "bound by the host" in note]
        assert told.startswith(f"{VARIANT} on tensorrt in fp32 on cuda:0, 1 clips: bound by the host: a call takes 2")


@pytest.mark.parametrize(("gpu_s", "bound"), [(1.0, False), (0.7, False), (0.6, True), (0.0, True)])
def test_a_call_is_bound_by_the_host_if_the_gpu_is_idle_for_a_third_of_it(gpu_s: float, bound: bool) -> None:
    assert GpuTimes(1.0, gpu_s).host_bound is bound


class TestInputs:
    def test_gaps_are_packed(self, machine: Machine, tmp_path: Path) -> None:
        graphs, _ = loaded(tmp_path)
        every = frames(18)
        mirrored = every[::2, ::-1, ::-1]
        assert not mirrored.flags.c_contiguous
        np.testing.assert_array_equal(graphs["encoder"](mirrored), reference("encoder", mirrored.copy()))

    @pytest.mark.parametrize(
        ("wrong", "got"),
        [
            (np.zeros((2, 16, 16, 3), np.uint8), r"uint8 \(2, 16, 16, 3\)"),
            (np.zeros((2, SIDE, SIDE, 3), np.float32), r"float32 \(2, 32, 32, 3\)"),
            (np.zeros((), np.uint8), r"uint8 \(\)"),
        ],
    )
    def test_other_shapes_and_types_are_refused(
        self, machine: Machine, tmp_path: Path, wrong: np.ndarray, got: str
    ) -> None:
        graphs, _ = loaded(tmp_path)
        with pytest.raises(BundleError, match=rf"the plan takes uint8 \(N, 32, 32, 3\), got {got}"):
            graphs["encoder"](wrong)

    def test_what_is_no_array_is_refused(self, machine: Machine, tmp_path: Path) -> None:
        graphs, _ = loaded(tmp_path)
        with pytest.raises(BundleError, match="a plan takes arrays, got list"):
            graphs["encoder"]([1, 2])

    @pytest.mark.parametrize("eager", [(), (0,)])
    @pytest.mark.parametrize("count", [1, 8, 19])
    def test_an_array_on_the_gpu_does_not_pass_the_host(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, eager: tuple[int, ...]
    ) -> None:
        machine.eager = eager
        graphs, _ = loaded(tmp_path)
        there = OnGpu(frames(count))
        packed = [slot.packed.host() for slot in graphs["encoder"]._slots]
        before = [array.copy() for array in packed]
        np.testing.assert_array_equal(graphs["encoder"](there), reference("encoder", frames(count)))
        for array, old in zip(packed, before, strict=True):
            np.testing.assert_array_equal(array, old)

    def test_an_array_of_another_framework_on_the_host(self, machine: Machine, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        graphs, _ = loaded(tmp_path)
        got = graphs["encoder"](torch.from_numpy(frames(9)))
        np.testing.assert_array_equal(got, reference("encoder", frames(9)))


class TestThreadsAndFailures:
    def test_two_threads_take_turns(self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.capture = False
        graphs, _ = loaded(tmp_path)
        results: dict[int, np.ndarray] = {}
        second = threading.Thread(target=lambda: results.update({2: graphs["encoder"](frames(5, seed=2))}))

        def while_running() -> None:
            monkeypatch.setattr(fake_runtime.ICudaEngine, "_while_running", staticmethod(lambda: None))
            second.start()
            second.join(0.3)  # it waits for its turn; without one it would be in the context by now

        monkeypatch.setattr(fake_runtime.ICudaEngine, "_while_running", staticmethod(while_running))
        results[1] = graphs["encoder"](frames(5, seed=1))
        second.join(30)
        for seed in (1, 2):
            np.testing.assert_array_equal(results[seed], reference("encoder", frames(5, seed=seed)))

    def test_a_failure_in_the_middle_leaves_a_graph_that_works(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.capture = False
        graphs, _ = loaded(tmp_path)
        execute, runs = fake_runtime.IExecutionContext.execute_async_v3, iter(range(100))

        def third_fails(self: Any, stream_handle: int) -> bool:
            if next(runs) == 2:
                return bool(self._refuse(fake_runtime.ErrorCodeTRT.FAILED_EXECUTION, "the GPU\n  is on fire"))
            return execute(self, stream_handle)

        monkeypatch.setattr(fake_runtime.IExecutionContext, "execute_async_v3", third_fails)
        with pytest.raises(BundleError, match=r"TensorRT 11\.4\.0\.106 cannot run the plan: the GPU is on fire"):
            graphs["encoder"](frames(40))
        assert all(not stream.waiting for stream in machine.streams), "work was left on the streams"
        np.testing.assert_array_equal(graphs["encoder"](frames(9, seed=3)), reference("encoder", frames(9, seed=3)))

    def test_memory_that_ends_while_it_runs(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine.capture = False
        graphs, _ = loaded(tmp_path)

        def refuse(self: Any, stream_handle: int) -> bool:
            return bool(self._refuse(fake_runtime.ErrorCodeTRT.FAILED_ALLOCATION, "no memory"))

        monkeypatch.setattr(fake_runtime.IExecutionContext, "execute_async_v3", refuse)
        with pytest.raises(DeviceError, match="the GPU has no memory left: no memory; take smaller batches"):
            graphs["encoder"](frames(3))


@pytest.mark.parametrize("name", ["Gpu", "Memory", "Stream", "Event", "Graph"])
def test_the_fake_gpu_has_what_the_real_one_has(name: str) -> None:
    real, fake = getattr(cuda, name), getattr(fake_cuda, name)
    methods = [each for each in vars(real) if inspect.isfunction(vars(real)[each]) and not each.startswith("_")]
    assert methods
    for method in methods:
        parameters = [list(inspect.signature(getattr(each, method)).parameters) for each in (real, fake)]
        assert parameters[0] == parameters[1], f"{name}.{method}"


def test_buckets_are_those_of_the_test() -> None:
    assert BUCKETS == (1, 4, 8), "the numbers in these tests are made for them"
