"""ONNX Runtime on a GPU, as far as a machine without one can tell: what is missing is said in one line."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from harec_deploy import devices
from harec_deploy.errors import BundleError, MissingDependency, UsageError
from harec_deploy.runners import get, installed, onnx_providers
from harec_deploy.runners.onnx import BoundGraph, OnnxRunner, cuda_options
from harec_deploy.runners.onnx_providers import CUDA, TENSORRT, require
from harec_deploy.runners.onnx_trt import engine_folder, tensorrt_options
from tests.test_recognizer import clips

needs_cpu_build = pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime is built for CUDA"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU that the driver would name; nothing can be run on it."""
    found = devices.CudaDevice(0, "A GPU", (9, 0), 80 << 30, (13, 0))
    monkeypatch.setattr(devices, "cuda_devices", lambda: (found,))
    return "cuda:0"


class TestBoundGraph:
    """The graph that a GPU uses, on memory of the host."""

    @pytest.fixture
    def session(self, exported: Path) -> onnxruntime.InferenceSession:
        model = (exported / "onnx-fp32/encoder.onnx").read_bytes()
        return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    @pytest.mark.parametrize("limit", [64, 8, 1])
    def test_it_gives_what_the_session_gives(self, session: onnxruntime.InferenceSession, limit: int) -> None:
        frames = clips(1)[0]
        (wanted,) = session.run(None, {session.get_inputs()[0].name: frames})
        got = BoundGraph("encoder", session, "cpu", limit)(frames)
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        assert got.dtype == np.float32

    def test_frames_of_any_memory_layout_are_taken(self, session: onnxruntime.InferenceSession) -> None:
        graph, frames = BoundGraph("encoder", session, "cpu", 64), clips(1)[0]
        np.testing.assert_array_equal(graph(np.asfortranarray(frames)), graph(frames))

    def test_the_result_is_the_callers_to_keep(self, session: onnxruntime.InferenceSession) -> None:
        graph = BoundGraph("encoder", session, "cpu", 64)
        first = graph(clips(1)[0])
        kept = first.copy()
        graph(clips(1, seed=1)[0])
        np.testing.assert_array_equal(first, kept)

    def test_a_wrong_batch_is_one_line(self, session: onnxruntime.InferenceSession) -> None:
        with pytest.raises(BundleError, match="ONNX Runtime cannot run the graph") as caught:
            BoundGraph("encoder", session, "cpu", 64)(np.zeros((2, 64, 64, 3), np.float32))
        assert "\n" not in str(caught.value)


class TestMissing:
    @needs_cpu_build
    @pytest.mark.parametrize("runner", ["onnx", "onnx-trt"])
    def test_a_build_for_the_cpu_names_the_other(self, gpu: str, runner: str) -> None:
        with pytest.raises(MissingDependency) as caught:
            get(runner, gpu)
        assert str(caught.value) == (
            f"runner {runner} on cuda:0 needs the package onnxruntime-gpu (onnxruntime is here, and the builds "
            "overwrite each other's files: pip uninstall onnxruntime first): pip install 'harec-deploy[gpu]'"
        )

    @needs_cpu_build
    def test_auto_passes_it_over(self, gpu: str) -> None:
        assert "onnx" not in {runner.name for runner in installed(gpu)}

    def test_the_loaders_words_become_the_librarys_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_providers._native, "__file__", str(tmp_path / "state.so"))
        assert onnx_providers._missing(CUDA) == "libonnxruntime_providers_shared.so is missing"
        (tmp_path / "libonnxruntime_providers_shared.so").write_text("no library")
        told = onnx_providers._missing(CUDA)
        assert told is not None
        assert told.endswith("file too short")

    # The next two choose words for what only a build for CUDA can lack; that it lacks it is pretended.
    @pytest.mark.parametrize(
        ("provider", "missing", "told"),
        [
            (
                CUDA,
                "libcudnn.so.9 is missing",
                "onnxruntime-gpu with CUDA's libraries (libcudnn.so.9 is missing): pip install 'harec-deploy[gpu]'",
            ),
            (
                TENSORRT,
                "libnvinfer.so.10 is missing",
                "TensorRT 10, which this onnxruntime-gpu is built for (libnvinfer.so.10 is missing): "
                "pip install --extra-index-url https://pypi.nvidia.com 'tensorrt-cu13>=10.13.2,<11'",
            ),
            (
                TENSORRT,
                "libcublas.so.13 is missing",
                "onnxruntime-gpu with CUDA's libraries (libcublas.so.13 is missing): pip install 'harec-deploy[gpu]'",
            ),
        ],
    )
    def test_a_missing_library_has_its_pip_line(
        self, monkeypatch: pytest.MonkeyPatch, provider: str, missing: str, told: str
    ) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA])
        monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
        monkeypatch.setattr(onnx_providers, "_missing", lambda _: missing)
        with pytest.raises(MissingDependency) as caught:
            require(provider, "onnx", "cuda:0")
        assert str(caught.value) == f"runner onnx on cuda:0 needs the package {told}"

    @pytest.mark.parametrize(
        ("here", "told"),
        [
            ({"onnxruntime", "onnxruntime-gpu"}, "pip uninstall onnxruntime onnxruntime-gpu first"),
            ({"onnxruntime-gpu"}, "onnxruntime-gpu of another version"),
            (set(), "another build is here"),
        ],
    )
    def test_what_must_go_first_is_named(self, monkeypatch: pytest.MonkeyPatch, here: set[str], told: str) -> None:
        monkeypatch.setattr(onnx_providers, "_installed", here.__contains__)
        assert told in onnx_providers.other_build()

    @needs_cpu_build
    @pytest.mark.filterwarnings("ignore:Specified provider")
    def test_a_session_that_went_to_the_cpu_is_refused(self, exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = exported / "onnx-fp32/encoder.onnx"
        runner = OnnxRunner()
        with pytest.raises(BundleError, match="goes on without CUDAExecutionProvider on cpu"):
            runner._session(path, path.read_bytes(), [(CUDA, cuda_options("cuda:0"))], None)
        assert capfd.readouterr() == ("", "")

    def test_tensorrt_is_no_runner_for_the_cpu(self) -> None:
        with pytest.raises(UsageError, match="runner onnx-trt does not run on cpu; it runs on cuda"):
            get("onnx-trt")


def test_the_gpu_is_named_to_the_provider_and_fp32_is_fp32() -> None:
    options = cuda_options("cuda:3")
    assert (options["device_id"], options["use_tf32"]) == ("3", "0")


def test_tensorrt_has_one_engine_for_every_batch(tmp_path: Path) -> None:
    options = tensorrt_options("cuda:1", "fp16", ("frames", [64, 64, 3]), tmp_path / "one")
    assert options["device_id"] == "1"
    assert options["trt_profile_min_shapes"] == "frames:1x64x64x3"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "frames:128x64x64x3"
    assert options["trt_engine_cache_path"] == str(tmp_path / "one")
    assert options["trt_fp16_enable"] == "1"
    assert "trt_fp16_enable" not in tensorrt_options("cuda:1", "fp32", ("frames", [64, 64, 3]), tmp_path)


def test_engines_of_other_weights_lie_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    first.write_bytes(b"weights")
    second.write_bytes(b"others")
    folders = {engine_folder(first, "1-fp32"), engine_folder(second, "1-fp32"), engine_folder(first, "1-fp16")}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "cache/harec-deploy/onnx-trt"}
