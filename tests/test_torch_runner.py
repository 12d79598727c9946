"""The bundle's weights as they are: the reference itself in fp32, with a proof in anything coarser."""

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path
from shutil import which

import msgspec
import numpy as np
import pytest
import torch

import harec_deploy
from harec_deploy.__main__ import app
from harec_deploy.bundle import Bundle, load
from harec_deploy.errors import BundleError, MissingDependency, ProofError, UsageError
from harec_deploy.export import export, export_weights, verify
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import softmax
from harec_deploy.runners import RUNNERS, executions, get, installed
from harec_deploy.runners import torch as runners_torch
from harec_deploy.runners.parts import OutOfMemory, Parts
from harec_deploy.runners.torch import TorchRunner
from harec_deploy.spec import WEIGHTS_VARIANT
from tests.conftest import write_bundle
from tests.test_bundle import edit
from tests.test_recognizer import clips


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> Path:
    """A bundle that was never exported. Do not write to it."""
    folder = tmp_path_factory.mktemp("weights") / "bundle"
    write_bundle(folder, videos=videos)
    return folder


@pytest.fixture
def fresh(tmp_path: Path, videos: Path) -> Bundle:
    """A bundle that was never exported, to write to."""
    return write_bundle(tmp_path / "bundle", videos=videos)


def graphs(folder: Path, precision: str = "fp32", threads: int | None = None) -> dict:
    return TorchRunner().load(load(folder), WEIGHTS_VARIANT, precision=precision, threads=threads)


def test_fp32_is_the_reference_to_the_bit(weights: Path) -> None:
    model, made, frames = from_bundle(load(weights)), graphs(weights), clips(1)[0]
    with torch.inference_mode():
        features = model.encoder(torch.from_numpy(frames))
        logits = model.head(features[None])
    np.testing.assert_array_equal(made["encoder"](frames), features.numpy())
    np.testing.assert_array_equal(made["head"](features.numpy()[None]), logits.numpy())


def test_bf16_is_near_the_reference_and_not_the_same(weights: Path) -> None:
    exact, coarse = graphs(weights)["encoder"](clips(1)[0]), graphs(weights, "bf16")["encoder"](clips(1)[0])
    assert coarse.dtype == np.float32
    difference = np.abs(coarse - exact).max() / np.abs(exact).max()
    assert 0 < difference < 0.03  # bf16 keeps 8 bits of a number, and four layers add up


def test_the_result_is_the_callers_to_keep(weights: Path) -> None:
    encoder = graphs(weights)["encoder"]
    first = encoder(clips(1)[0])
    kept = first.copy()
    encoder(clips(1, seed=1)[0])
    np.testing.assert_array_equal(first, kept)


def test_frames_of_any_memory_layout_are_taken(weights: Path) -> None:
    encoder, frames = graphs(weights)["encoder"], clips(1)[0]
    wanted = encoder(frames)
    locked = frames.copy()
    locked.setflags(write=False)
    backwards = frames[::-1].copy()[::-1]
    for same in (locked, backwards, np.asfortranarray(frames)):
        np.testing.assert_array_equal(encoder(same), wanted)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), "float32 (2, 64, 64, 3)"),
        (np.zeros((2, 32, 64, 3), np.uint8), "uint8 (2, 32, 64, 3)"),
        (np.zeros((64, 64, 3), np.uint8), "uint8 (64, 64, 3)"),
        (np.zeros((0, 64, 64, 3), np.uint8), "uint8 (0, 64, 64, 3)"),
    ],
)
def test_wrong_frames_are_refused_in_one_line(weights: Path, wrong: np.ndarray, got: str) -> None:
    with pytest.raises(BundleError) as caught:
        graphs(weights)["encoder"](wrong)
    assert str(caught.value) == f"the graph takes uint8 (N, 64, 64, 3), got {got}"


def test_threads_are_those_asked_for_and_only_while_it_runs(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = torch.nn.LSTM.forward

    def counted(self: torch.nn.LSTM, *args: torch.Tensor) -> object:
        seen.append(torch.get_num_threads())
        return forward(self, *args)

    monkeypatch.setattr(torch.nn.LSTM, "forward", counted)
    before = torch.get_num_threads()
    features = np.zeros((1, 20, load(weights).spec.feature_dim), np.float32)
    for threads in (before + 1, None):
        graphs(weights, threads=threads)["head"](features)
        assert torch.get_num_threads() == before
    assert seen == [before + 1, before]


def test_a_precision_or_variant_of_others_is_refused(exported: Path) -> None:
    for variant, precision in (("onnx-fp32", "fp32"), (WEIGHTS_VARIANT, "int8")):
        with pytest.raises(BundleError, match="PyTorch executes the variant torch in fp32, fp16 or bf16"):
            TorchRunner().load(load(exported), variant, precision=precision)


def test_a_clip_wise_model_is_one_graph_of_whole_clips(weights: Path) -> None:
    ((name, (_, rows)),) = runners_torch._graphs(torch.nn.Identity(), load(weights)).items()
    assert (name, rows.dtype, rows.shape) == ("model", "uint8", (20, 64, 64, 3))


class TestChoice:
    def test_a_bundle_that_was_never_exported_runs_in_fp32(self, weights: Path) -> None:
        recognizer = harec_deploy.load(weights, runner="torch", precision="fp32", device="cpu")
        assert str(recognizer.execution) == "torch on torch in fp32"
        with torch.inference_mode():
            wanted = softmax(from_bundle(load(weights))(torch.from_numpy(clips(3))).numpy())
        np.testing.assert_allclose(recognizer.predict(clips(3)), wanted, atol=1e-6)

    def test_without_a_proof_nothing_coarser_runs(self, weights: Path) -> None:
        assert [each.precision for each in executions(load(weights).spec, "torch", device="cpu")] == ["fp32"]
        with pytest.raises(UsageError, match="precision bf16 on cpu; there is torch on torch in fp32"):
            harec_deploy.load(weights, runner="torch", precision="bf16", device="cpu")

    def test_on_a_cpu_it_is_taken_only_by_name(self, weights: Path, exported: Path) -> None:
        assert "torch" not in {runner.name for runner in installed()}
        assert "torch" not in {each.runner.name for each in executions(load(exported).spec, device="cpu")}
        with pytest.raises(BundleError, match="no variant yet: run harec-deploy export on it, or name --runner torch"):
            harec_deploy.load(weights, device="cpu")

    def test_other_runners_do_not_take_the_weights(self, weights: Path) -> None:
        spec = load(weights).spec
        for runner in installed():
            assert runner.precisions(spec.ways()[WEIGHTS_VARIANT]) == ()

    def test_it_takes_no_graphs(self, exported: Path) -> None:
        assert TorchRunner().precisions(load(exported).spec.variants["onnx-fp32"]) == ()

    def test_a_missing_package_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(RUNNERS, "torch", RUNNERS["torch"]._replace(target="harec_deploy_no_such_runtime:Runner"))
        with pytest.raises(MissingDependency, match=r"pip install 'harec-deploy\[torch\]'"):
            get("torch")

    def test_choosing_and_loading_another_runner_does_not_import_torch(self, exported: Path) -> None:
        code = "import sys, harec_deploy; harec_deploy.load(sys.argv[1]); sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code, str(exported)], check=False).returncode == 0


class TestProof:
    def test_export_weights_proves_every_precision_and_keeps_check_clips(self, fresh: Bundle, videos: Path) -> None:
        export_weights(fresh.folder, [str(videos)], device="cpu")
        spec = load(fresh.folder).spec
        proofs = {proof.precision: proof for proof in spec.variants[WEIGHTS_VARIANT].proofs}
        assert set(proofs) == {"fp32", "bf16"}
        assert all(proof.passed and proof.clips == 6 and proof.device == "cpu" for proof in proofs.values())
        assert proofs["fp32"].max_abs_dp <= 1e-6 < proofs["bf16"].max_abs_dp
        assert load(fresh.folder).check_clips() is not None
        assert (
            harec_deploy.load(fresh.folder, runner="torch", precision="bf16", device="cpu").execution.precision
            == "bf16"
        )

    def test_a_coarse_precision_that_fails_is_noted_and_not_used(
        self, fresh: Bundle, videos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(verify.MAX_ABS_DP, "bf16", 0.0)
        export_weights(fresh.folder, [str(videos)], device="cpu")
        proofs = load(fresh.folder).spec.variants[WEIGHTS_VARIANT].proofs
        assert {proof.precision: proof.passed for proof in proofs} == {"fp32": True, "bf16": False}
        with pytest.raises(UsageError, match="no way to run the bundle with runner torch in precision bf16"):
            harec_deploy.load(fresh.folder, runner="torch", precision="bf16", device="cpu")

    def test_fp32_that_fails_writes_nothing(self, fresh: Bundle, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = (fresh.folder / "bundle.json").read_bytes()
        monkeypatch.setitem(verify.MAX_ABS_DP, "fp32", -1.0)
        with pytest.raises(
            ProofError, match=r"torch on torch in fp32 is not the trained model: .* torch was not written"
        ):
            export_weights(fresh.folder, [str(videos)], device="cpu")
        assert (fresh.folder / "bundle.json").read_bytes() == before

    def test_onnx_exported_beside_it_keeps_both(self, fresh: Bundle, videos: Path) -> None:
        export_weights(fresh.folder, [str(videos)], max_clips=2, device="cpu")
        export(fresh.folder, [str(videos)], max_clips=2)
        assert set(load(fresh.folder).spec.variants) == {WEIGHTS_VARIANT, "onnx-fp32"}

    def test_by_the_command_line_too_and_auto_still_asks_for_an_export(self, fresh: Bundle, videos: Path) -> None:
        arguments = ["export", str(fresh.folder), "--runner", "torch", "--clips", str(videos), "--max-clips", "1"]
        app(args=arguments, standalone_mode=False)
        assert set(load(fresh.folder).spec.variants) == {WEIGHTS_VARIANT}
        with pytest.raises(BundleError, match="no variant yet: run harec-deploy export on it, or name --runner torch"):
            harec_deploy.load(fresh.folder, device="cpu")

    def test_a_runner_of_graphs_is_no_runner_of_weights(self, weights: Path, videos: Path) -> None:
        with pytest.raises(UsageError, match="runner openvino takes no weights, only exported graphs"):
            export_weights(weights, [str(videos)], runner="openvino", device="cpu")

    def test_graphs_under_the_name_of_the_weights_are_refused(self, bundle: Path) -> None:
        edit(bundle, lambda spec: spec.update(variants={WEIGHTS_VARIANT: spec["variants"]["onnx-fp32"]}))
        with pytest.raises(BundleError, match=r"variant 'torch' has graphs \['encoder', 'head'\]; expected none"):
            load(bundle)
        edit(bundle, lambda spec: spec.update(variants={"mine": spec["variants"][WEIGHTS_VARIANT] | {"graphs": {}}}))
        with pytest.raises(BundleError, match=r"variant 'mine' has graphs \[\]; expected encoder and head, or model"):
            load(bundle)


class TestFingerprint:
    def test_it_is_of_the_weights_and_what_they_make(self, exported: Path) -> None:
        bundle = load(exported)
        spec = bundle.spec
        changed = [
            msgspec.structs.replace(spec, weights=msgspec.structs.replace(spec.weights, sha256="0" * 64)),
            msgspec.structs.replace(spec, architecture="resnet18_lstm"),
            msgspec.structs.replace(spec, head=msgspec.structs.replace(spec.head, pool="mean")),
            msgspec.structs.replace(spec, temperature=2.0),
        ]
        prints = [Bundle(bundle.folder, each).fingerprint(WEIGHTS_VARIANT) for each in (spec, *changed)]
        assert len(set(prints)) == len(prints)
        assert bundle.fingerprint("onnx-fp32") not in prints

    def test_proofs_do_not_change_it(self, fresh: Bundle, videos: Path) -> None:
        before = fresh.fingerprint(WEIGHTS_VARIANT)
        assert (
            export_weights(fresh.folder, [str(videos)], max_clips=1, device="cpu").fingerprint(WEIGHTS_VARIANT)
            == before
        )


def test_a_folder_is_labelled_without_any_onnx_file(weights: Path, videos: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options = Options(out=tmp_path / "labels.csv", runner="torch", device="cpu", announce=said.append)
    summary = label(weights, [str(videos)], options)
    assert summary.statuses == {"ok": 6}
    assert "torch on torch in fp32" in said[0]
    with (tmp_path / "labels.csv").open() as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 6
    recognizer = harec_deploy.load(weights, runner="torch", device="cpu")
    for path, row in rows.items():
        alone = recognizer.label(path)
        assert (row["label"], float(row["score"])) == (alone.label, pytest.approx(alone.score, abs=1e-5))
    header = json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[0])
    assert (header["variant"], header["runner"], header["precision"]) == ("torch", "torch", "fp32")


class TestParts:
    """The halving that a GPU's memory asks for; here what runs a part refuses what is too large."""

    @staticmethod
    def run(limit: int, holds: int, count: int) -> tuple[list[int], list[int], Parts]:
        taken: list[int] = []

        def run(part: np.ndarray) -> list[int]:
            if len(part) > holds:
                raise OutOfMemory
            taken.append(len(part))
            return [int(each) for each in part]

        parts = Parts("the encoder on cuda:0", limit)
        return [each for part in parts.feed(np.arange(count), run) for each in part], taken, parts

    def test_what_fits_goes_in_parts_of_the_limit(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.run(8, 8, 20)[:2] == (list(range(20)), [8, 8, 4])
        assert not caplog.messages

    def test_without_memory_the_limit_is_halved_and_said_once(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            rows, taken, parts = self.run(128, 20, 130)
        assert rows == list(range(130))
        assert taken == [16] * 8 + [2]
        assert caplog.messages == ["the encoder on cuda:0 has no memory for batches of 128: going on with 16"]
        assert parts.limit == 16

    def test_no_memory_for_one_row_is_an_error(self) -> None:
        with pytest.raises(BundleError, match="the encoder on cuda:0 has no memory for a batch of 1"):
            self.run(8, 0, 3)


@pytest.mark.slow
@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_it_gives_the_same(fresh: Bundle, videos: Path) -> None:
    exact = harec_deploy.load(fresh.folder, runner="torch", device="cpu").predict(clips(2))
    compiled = harec_deploy.load(fresh.folder, runner="torch-compile", device="cpu")
    assert str(compiled.execution) == "torch on torch-compile in fp32"
    np.testing.assert_allclose(compiled.predict(clips(2)), exact, atol=1e-5)
