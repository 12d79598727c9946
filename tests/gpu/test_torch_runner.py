"""PyTorch on a GPU: what it gives, CUDA graphs, copies, and what it does without memory."""

# ruff: noqa: E402 - what is not installed is found out before it is imported
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_bundle
from tests.gpu.conftest import need

for _package in ("torch", "torchvision", "safetensors", "onnx"):
    need(_package)

import torch

import harec_deploy
from harec_deploy.bench.engine import Settings, latency
from harec_deploy.bench.measure import Budget
from harec_deploy.bundle import load
from harec_deploy.errors import BundleError
from harec_deploy.export import verify
from harec_deploy.export.torch import prove_weights
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import softmax
from harec_deploy.runners.torch import TorchRunner
from harec_deploy.runners.torch_cuda import CudaGraph
from harec_deploy.spec import WEIGHTS_VARIANT

pytestmark = pytest.mark.gpu
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}  # of features, beside the largest


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "bundle"
    write_bundle(folder)
    return folder


@pytest.fixture
def encoder(weights: Path) -> CudaGraph:
    graph = TorchRunner("cuda:0").load(load(weights), WEIGHTS_VARIANT, precision="fp32")["encoder"]
    assert isinstance(graph, CudaGraph)
    return graph


def reference(weights: Path, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return from_bundle(load(weights)).encoder(torch.from_numpy(pixels)).numpy()


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("count", [1, 5, 128, 300])
def test_features_are_the_references(weights: Path, precision: str, count: int) -> None:
    graph = TorchRunner("cuda:0").load(load(weights), WEIGHTS_VARIANT, precision=precision)["encoder"]
    got, wanted = graph(frames(count)), reference(weights, frames(count))
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() <= TOLERANCES[precision] * np.abs(wanted).max()


def test_probabilities_are_the_references(weights: Path) -> None:
    recognizer = harec_deploy.load(weights, runner="torch", device="cuda:0")
    clips = frames(60).reshape(3, 20, 64, 64, 3)
    with torch.inference_mode():
        wanted = softmax(from_bundle(load(weights))(torch.from_numpy(clips)).numpy())
    np.testing.assert_allclose(recognizer.predict(clips), wanted, atol=1e-4)


def test_with_and_without_cuda_graphs_it_gives_the_same(encoder: CudaGraph) -> None:
    pixels = frames(300)
    captured = encoder(pixels)
    assert encoder.capture
    assert all(bucket.graph for bucket in encoder._buckets.values())
    encoder.capture = False
    encoder._buckets.clear()
    np.testing.assert_array_equal(encoder(pixels), captured)
    assert not any(bucket.graph for bucket in encoder._buckets.values())


def test_the_gpus_clock_is_within_that_on_the_wall(encoder: CudaGraph) -> None:
    pixels = frames(300)
    encoder(pixels)
    encoder.clock.start()
    begun = time.perf_counter()
    encoder(pixels)
    wall_s = time.perf_counter() - begun
    assert 0 < encoder.clock.stop() < wall_s
    assert encoder.clock.stop() == 0


def test_bench_has_the_gpus_milliseconds(weights: Path) -> None:
    quick = Budget(seconds=0.5, warm_up_s=0.05, turn_s=0.01)
    result = latency(weights, Settings(compare=("torch:fp32",), device="cuda:0", batches=(1, 8), budget=quick))
    assert [row["batch"] for row in result.rows] == [1, 8]
    assert all(0 < row["gpu_ms"] < 2 * row["p50_ms"] for row in result.rows)


def test_what_cannot_be_captured_runs_without_graphs(encoder: CudaGraph, caplog: pytest.LogCaptureFixture) -> None:
    wanted = encoder(frames(8))

    class Waits(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            torch.cuda.current_stream().synchronize()  # no capture allows it
            return inner(pixels)

    inner = encoder._module
    plain = CudaGraph("a test", Waits(), encoder._rows, torch.device("cuda:0"), 128)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(plain(frames(8)), wanted)
        plain(frames(3))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("a test runs without CUDA graphs: ")


def test_many_calls_in_a_row_do_not_mix(encoder: CudaGraph) -> None:
    several = [frames(40, seed) for seed in range(8)]
    alone = [encoder(each) for each in several]
    np.testing.assert_allclose(encoder(np.concatenate(several)), np.concatenate(alone), atol=1e-5)
    for each, wanted in zip(several, alone, strict=True):
        np.testing.assert_array_equal(encoder(each), wanted)


def test_a_tensor_of_the_gpu_is_taken_as_it_is(encoder: CudaGraph) -> None:
    pixels = frames(200)
    there = torch.from_numpy(pixels).to("cuda:0")

    class Speaks:
        def __dlpack__(self, **how: object) -> object:
            return there.__dlpack__(**how)

        def __dlpack_device__(self) -> tuple[int, int]:
            return there.__dlpack_device__()

    np.testing.assert_array_equal(encoder(Speaks()), encoder(pixels))
    np.testing.assert_array_equal(encoder(there), encoder(pixels))


def test_wrong_frames_are_refused(encoder: CudaGraph) -> None:
    with pytest.raises(BundleError, match=r"the graph takes uint8 \(N, 64, 64, 3\), got float32"):
        encoder(torch.zeros((2, 64, 64, 3), device="cuda:0"))


def test_without_memory_it_goes_on_with_fewer(encoder: CudaGraph, caplog: pytest.LogCaptureFixture) -> None:
    pixels = frames(128)
    wanted = encoder(pixels)

    class Greedy(torch.nn.Module):
        def forward(self, part: torch.Tensor) -> torch.Tensor:
            if len(part) > 32:
                torch.empty(1 << 50, dtype=torch.uint8, device=part.device)
            return inner(part)

    inner = encoder._module
    graph = CudaGraph("a test", Greedy(), encoder._rows, torch.device("cuda:0"), 128)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(graph(pixels), wanted, atol=1e-5)
    assert caplog.messages == ["a test has no memory for batches of 128: going on with 32"]
    assert graph.parts.limit == 32


def test_every_precision_can_be_proved(weights: Path) -> None:
    bundle = load(weights)
    clips = verify.ProofClips([str(i) for i in range(6)], frames(120).reshape(6, 20, 64, 64, 3))
    logits = verify.reference_logits(from_bundle(bundle), clips)
    proved = prove_weights(bundle, [TorchRunner("cuda:0")], clips, logits, print)
    proofs = {proof.precision: proof for proof in proved.spec.variants[WEIGHTS_VARIANT].proofs}
    assert set(proofs) == {"fp32", "fp16", "bf16"}
    assert proofs["fp32"].passed
    assert all(proof.device == "cuda" and proof.hardware for proof in proofs.values())
