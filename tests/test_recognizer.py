"""A loaded bundle: one answer for frames, clips and videos, whoever executes it."""

import copy
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import harec_deploy
from harec_deploy import Window
from harec_deploy.bundle import load as load_bundle
from harec_deploy.errors import BundleError, MissingDependency, PlanRefused, UsageError
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import Recognizer, softmax
from harec_deploy.runners import RUNNERS, executions, get, installed
from tests.test_bundle import edit, rehash

CPU_RUNNERS = sorted(name for name, entry in RUNNERS.items() if "cpu" in entry.devices and name != "torch-compile")


@pytest.fixture(scope="module")
def recognizer(exported: Path) -> Recognizer:
    return harec_deploy.load(exported, runner="openvino", precision="fp32")


def clips(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 20, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("runner", CPU_RUNNERS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_runner_gives_the_references_probabilities(exported: Path, runner: str, count: int) -> None:
    with torch.inference_mode():
        wanted = softmax(from_bundle(load_bundle(exported))(torch.from_numpy(clips(count))).numpy())
    got = harec_deploy.load(exported, runner=runner, precision="fp32").predict(clips(count))
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert got.dtype == np.float32


def test_a_clips_answer_does_not_depend_on_its_neighbours(recognizer: Recognizer) -> None:
    together = recognizer.predict(clips(5))
    alone = np.concatenate([recognizer.predict(clips(5)[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_encode_and_classify_are_predict(recognizer: Recognizer) -> None:
    features = recognizer.encode(clips(2).reshape(-1, 64, 64, 3))
    assert features.shape == (40, recognizer.spec.feature_dim)
    np.testing.assert_allclose(
        recognizer.classify(features.reshape(2, 20, -1)), recognizer.predict(clips(2)), atol=1e-6
    )


@pytest.mark.parametrize("runner", CPU_RUNNERS)
def test_frames_come_back_in_their_order_however_they_are_parted(exported: Path, runner: str) -> None:
    recognizer = harec_deploy.load(exported, runner=runner, precision="fp32")
    frames = clips(2).reshape(-1, 64, 64, 3)[:37]  # more than are computed at a time, and no multiple of that
    alone = np.concatenate([recognizer.encode(frame[None]) for frame in frames])
    np.testing.assert_allclose(recognizer.encode(frames), alone, atol=1e-5)
    np.testing.assert_allclose(recognizer.encode(frames[::-1]), alone[::-1], atol=1e-5)


@pytest.mark.parametrize("runner", CPU_RUNNERS)
def test_of_nothing_comes_nothing(exported: Path, runner: str) -> None:
    recognizer = harec_deploy.load(exported, runner=runner, precision="fp32")
    dim, classes = recognizer.spec.feature_dim, len(recognizer.spec.classes)
    assert recognizer.encode(np.zeros((0, 64, 64, 3), np.uint8)).shape == (0, dim)
    assert recognizer.classify(np.zeros((0, 20, dim), np.float32)).shape == (0, classes)
    assert recognizer.predict(clips(0)).shape == (0, classes)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 20, 64, 64, 3), np.float32), np.zeros((1, 16, 64, 64, 3), np.uint8), np.zeros(3, np.uint8)]
)
def test_wrong_clips_are_refused_with_shapes(recognizer: Recognizer, wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"must be uint8 with \(20, 64, 64, 3\) behind the first axis, got"):
        recognizer.predict(wrong)


def test_temperature_divides_the_logits(bundle: Path, recognizer: Recognizer) -> None:
    edit(bundle, lambda spec: spec.update(temperature=4.0))
    soft = harec_deploy.load(bundle, runner="openvino", precision="fp32").predict(clips(3))
    sharp = recognizer.predict(clips(3))
    np.testing.assert_allclose(soft, softmax(np.log(sharp) / 4), atol=1e-4)


class TestLabel:
    def test_a_video(self, recognizer: Recognizer, videos: Path) -> None:
        result = recognizer.label(videos / "jump" / "v_jump_g01_c01.mp4")
        assert result.status == "ok"
        assert result.label in recognizer.spec.classes
        assert [name for name, _ in result.top] != []
        assert sum(score for _, score in result.top) == pytest.approx(1, abs=1e-5)
        assert result.score == max(score for _, score in result.top)
        assert result.info is not None
        assert result.info.frames_found == 30

    def test_windows_give_segments(self, recognizer: Recognizer, videos: Path) -> None:
        path = videos / "jump" / "v_jump_g01_c01.mp4"
        windows = [Window(0, 0.5), Window(0.5, 1.2)]
        result = recognizer.label(path, windows=windows)
        assert [(s.start_s, s.end_s) for s in result.segments] == windows
        first = recognizer.label(path, windows=windows[:1])
        assert first.segments[0].score == pytest.approx(result.segments[0].score, abs=1e-5)

    def test_a_bad_video_is_a_result_not_an_exception(self, recognizer: Recognizer, tmp_path: Path) -> None:
        (tmp_path / "text.mp4").write_text("hello")
        result = recognizer.label(tmp_path / "text.mp4")
        assert (result.status, result.label, result.top) == ("failed", None, ())
        assert result.error is not None
        assert result.error.kind == "not_video"

    def test_a_link_means_what_it_leads_to(self, recognizer: Recognizer, videos: Path, tmp_path: Path) -> None:
        link = tmp_path / "link.mp4"
        link.symlink_to(videos / "jump" / "v_jump_g01_c01.mp4")
        (many,) = recognizer.label_many([link])
        assert (many.path, many.status) == (str(link), "ok")
        assert recognizer.label(link).label == many.label

    @pytest.mark.parametrize("runner", ["openvino", "onnx"])
    def test_threads_share_one(self, exported: Path, videos: Path, runner: str) -> None:
        shared = harec_deploy.load(exported, runner=runner, precision="fp32")
        batches = [clips(1 + place % 3, seed=place) for place in range(12)]
        wanted = [shared.predict(batch) for batch in batches]
        path = videos / "jump" / "v_jump_g01_c01.mp4"
        with ThreadPoolExecutor(6) as pool:
            labelled = [pool.submit(shared.label, path) for _ in range(6)]
            for _ in range(5):
                for want, got in zip(wanted, pool.map(shared.predict, batches), strict=True):
                    np.testing.assert_allclose(got, want, atol=1e-6)
            assert {each.result(timeout=60).label for each in labelled} == {shared.label(path).label}

    def test_a_forked_process_says_that_it_must_load_its_own(self, exported: Path) -> None:
        code = f"""
import os, sys, numpy, harec_deploy
recognizer = harec_deploy.load({str(exported)!r}, runner="openvino", precision="fp32")
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    recognizer.predict(numpy.zeros((1, 20, 64, 64, 3), numpy.uint8))
except harec_deploy.HarecError as error:
    print(error, flush=True)
    os._exit(error.exit_status)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr
        assert "loaded in another process, and a fork has no threads of it: load one here" in done.stdout

    def test_a_name_that_no_file_can_have(self, recognizer: Recognizer, videos: Path) -> None:
        good = videos / "jump" / "v_jump_g01_c01.mp4"
        many = {result.path: result for result in recognizer.label_many([good, "a\0b.mp4", str(good)], workers=1)}
        assert many["a\0b.mp4"].error is not None
        assert many["a\0b.mp4"].error.kind == "vanished"
        assert many[str(good)].status == "ok"
        assert recognizer.label("a\0b.mp4").status == "failed"

    def test_results_go_between_processes(self, recognizer: Recognizer) -> None:
        failed = recognizer.label("gone.mp4")
        again = pickle.loads(pickle.dumps(failed))
        assert again.error is not None
        assert (again.path, again.error.kind, str(again.error)) == ("gone.mp4", "vanished", str(failed.error))
        for error in (
            PlanRefused("of another GPU", "onnx-fp16", "cuda:0"),
            MissingDependency("av", "train", "this"),
            UsageError("no"),
        ):
            same = copy.deepcopy(error)
            assert (type(same), str(same), vars(same)) == (type(error), str(error), vars(error))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("clip.avi",), "label_many takes several paths, got 'clip.avi': use label, or [path]"),
            ((Path("clip.avi"),), "label_many takes several paths"),
            ((["clip.avi"], 0), "0 workers: allowed are 1 and more, None for one on each core"),
            ((["clip.avi"], -1), "-1 workers: allowed are 1 and more"),
        ],
    )
    def test_a_wrong_call_is_told_at_once(self, recognizer: Recognizer, arguments: tuple, message: str) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            recognizer.label_many(arguments[0], workers=arguments[1] if arguments[1:] else None)

    def test_many_are_the_same_as_each(self, recognizer: Recognizer, videos: Path) -> None:
        paths = sorted(videos.rglob("*.*"))
        many = {result.path: result for result in recognizer.label_many(paths, workers=3)}
        assert many.keys() == {str(path) for path in paths}
        for path in paths:
            alone, shared = recognizer.label(path), many[str(path)]
            assert alone.label == shared.label
            assert alone.score == pytest.approx(shared.score, abs=1e-5)

    @pytest.mark.parametrize(("last", "status"), [("", 0), ("raise ValueError('theirs')", 1)])
    def test_a_program_that_leaves_results_untaken_ends(
        self, exported: Path, videos: Path, last: str, status: int
    ) -> None:
        code = f"""
import harec_deploy
results = harec_deploy.load({str(exported)!r}, runner="openvino", precision="fp32").label_many(
    {[str(path) for path in sorted(videos.rglob("*.mp4"))] * 5!r}, workers=1
)
print(next(results).status)
{last}
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        assert (done.stdout, done.returncode) == ("ok\n", status), done.stderr
        assert ("ValueError: theirs" in done.stderr) == bool(last)


class TestChoice:
    def test_auto_takes_something_that_is_proved(self, exported: Path) -> None:
        recognizer = harec_deploy.load(exported)
        chosen = recognizer.execution
        first, _, rest = recognizer.reason.removeprefix("the fastest here, in clips/s: ").partition(", ")
        assert first.startswith(f"{chosen.runner.name} {chosen.precision} ")
        assert float(first.split()[-1]) >= max(float(each.split()[-1]) for each in rest.split(", "))
        proof = load_bundle(exported).spec.variants[chosen.variant].proof(chosen.runner.name, chosen.precision)
        assert proof is not None
        assert proof.passed

    def test_what_failed_its_proof_is_not_used(self, bundle: Path) -> None:
        def fail(spec: dict) -> None:
            for proof in spec["variants"]["onnx-fp32"]["proofs"]:
                proof["passed"] = proof["runner"] == "onnx"

        edit(bundle, fail)
        assert [e.runner.name for e in executions(load_bundle(bundle).spec)] == ["onnx"]
        with pytest.raises(
            UsageError, match="no way to run the bundle with runner openvino in precision auto; there is"
        ):
            harec_deploy.load(bundle, runner="openvino")

    def test_a_coarser_precision_without_proof_is_not_used(self, bundle: Path) -> None:
        edit(bundle, lambda spec: spec["variants"]["onnx-fp32"].update(proofs=[]))
        found = executions(load_bundle(bundle).spec)
        assert {e.runner.name for e in found} == {runner.name for runner in installed()}
        assert {e.precision for e in found} == {"fp32"}

    def test_unknown_names(self, exported: Path) -> None:
        with pytest.raises(UsageError, match="unknown runner 'caffe'; allowed are auto, openvino, onnx"):
            harec_deploy.load(exported, runner="caffe")
        with pytest.raises(UsageError, match="in precision int3; there is onnx-fp32 on openvino in fp32"):
            harec_deploy.load(exported, precision="int3")

    def test_a_missing_package_is_named_with_its_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(RUNNERS, "onnx", RUNNERS["onnx"]._replace(target="harec_deploy_no_such_runtime:Runner"))
        with pytest.raises(MissingDependency, match=r"pip install 'harec-deploy\[ort\]'"):
            get("onnx")
        assert [runner.name for runner in installed()] == ["openvino"]

    def test_without_a_variant_the_next_step_is_named(self, bundle: Path) -> None:
        edit(bundle, lambda spec: spec.update(variants={}))
        with pytest.raises(BundleError, match="no variant yet: run harec-deploy export"):
            harec_deploy.load(bundle)


def test_a_machine_that_computes_something_else_is_noticed(bundle: Path) -> None:
    with np.load(bundle / "check.npz") as arrays:
        clips_, logits = arrays["clips"], arrays["logits"]
    np.savez(bundle / "check.npz", clips=clips_, logits=logits + np.array([0.0, 0.1, 0.0], np.float32))
    edit(bundle, lambda spec: spec.update(check=rehash(bundle, "check.npz")))
    with pytest.raises(BundleError, match="gives other probabilities here than where it was exported"):
        harec_deploy.load(bundle, runner="openvino", precision="fp32")
