"""ONNX Runtime by CUDA: the same files, on a GPU."""

# ruff: noqa: E402 - what is not installed is found out before it is imported
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_bundle
from tests.gpu.conftest import need

for _package in ("torch", "torchvision", "safetensors", "onnx", "onnxscript", "onnxruntime"):
    need(_package)

import onnxruntime
import torch

from harec_deploy.bundle import load
from harec_deploy.errors import BundleError
from harec_deploy.export.onnx import write_graphs
from harec_deploy.models import from_bundle
from harec_deploy.runners.onnx import BoundGraph, OnnxRunner, cuda_options
from harec_deploy.runners.onnx_providers import CUDA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="no onnxruntime-gpu here"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    bundle = write_bundle(folder / "bundle")
    return write_graphs(from_bundle(bundle), bundle.spec, folder)


@pytest.fixture(scope="module")
def model(files: dict[str, Path]) -> torch.nn.Module:
    return from_bundle(load(files["encoder"].parent / "bundle"))


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 5, 128, 300])
def test_features_are_the_references(files: dict[str, Path], model: torch.nn.Module, count: int) -> None:
    graph = OnnxRunner("cuda:0").load_file(files["encoder"])
    with torch.inference_mode():
        wanted = model.encoder(torch.from_numpy(frames(count))).numpy()
    np.testing.assert_allclose(graph(frames(count)), wanted, atol=1e-4 * np.abs(wanted).max())


def test_the_head_is_the_references(files: dict[str, Path], model: torch.nn.Module) -> None:
    features = np.random.default_rng(0).normal(size=(3, 20, 64)).astype(np.float32)
    with torch.inference_mode():
        wanted = model.head(torch.from_numpy(features)).numpy()
    got = OnnxRunner("cuda:0").load_file(files["head"])(features)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


def test_wrong_frames_are_one_line(files: dict[str, Path]) -> None:
    graph = OnnxRunner("cuda:0").load_file(files["encoder"])
    with pytest.raises(BundleError, match="ONNX Runtime cannot run the graph") as caught:
        graph(np.zeros((2, 64, 64, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_without_memory_it_goes_on_with_fewer(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    # 512 frames of 64x64 are 25 MB as float32 pixels alone, and 134 MB behind the first convolution.
    options = cuda_options("cuda:0") | {"gpu_mem_limit": str(96 << 20)}
    model = files["encoder"].read_bytes()
    session = onnxruntime.InferenceSession(model, providers=[(CUDA, options)], enable_fallback=0)
    graph = BoundGraph("a test", session, "cuda:0", 512)
    wanted = OnnxRunner("cuda:0").load_file(files["encoder"])(frames(512))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(graph(frames(512)), wanted, atol=1e-3)
    assert graph.parts.limit < 512
    assert len(caplog.messages) == 1
