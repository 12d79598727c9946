"""What is held against the reference: variants that were disturbed, decoders that differ in one step, and the gate."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

import harec_deploy
from harec_deploy.bundle import file_ref, load, save
from harec_deploy.decode import DECODERS, Frames, Size, Timestamps
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.discover import VideoFile, truth_of
from harec_deploy.errors import UsageError
from harec_deploy.export.differences import Comparison, Share, compare, failures_of, source_of
from harec_deploy.export.page import write_page
from harec_deploy.export.stages import NATIVE_BYTES, Tally, native_size, scaled
from harec_deploy.export.verify import frames_of
from harec_deploy.intervals import wilson
from tests.media import make_video
from tests.test_bundle import edit
from tests.test_cli import run
from tests.test_report import Page
from tests.test_verify import BRIGHTER_BY, Brighter
from tests.test_windows import clipwise

MODEL_SIZE = 64  # of the test bundle's frames


class Coarse(PyAVDecoder):
    """Gives the video's own pictures as they are, but scales them with every fourth pixel only."""

    name = "coarse"

    def frames(self, path: Path, timestamps_s: Timestamps, size: Size) -> Frames:
        found = super().frames(path, timestamps_s, size)
        if size.width != MODEL_SIZE:
            return found
        return replace(found, pixels=found.pixels[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2))


@pytest.fixture(autouse=True)
def decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Brighter, Coarse):
        monkeypatch.setitem(DECODERS, each.name, f"{each.__module__}:{each.__name__}")


def measure(bundle: Path, clips: Path, **options: Any) -> Comparison:
    how = {"runner": "onnx", "precision": "fp32", **options.pop("load", {})}
    return compare(harec_deploy.load(bundle, on_trial=True, **how), [str(clips)], **options)


def disturb(bundle: Path, graph: str, change: Callable[[Any], Any], where: str = "weight") -> Path:
    """Change the weights of a graph whose name has ``where`` in it, and the hash that guards them."""
    path = bundle / "onnx-fp32" / f"{graph}.onnx"
    model = onnx.load(path)
    touched = 0
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if where in tensor.name and values.dtype == np.float32:
            changed = change(values).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))
            touched += 1
    assert touched
    onnx.save(model, path)
    spec = load_spec(bundle)
    variant = spec.variants["onnx-fp32"]
    graphs = {**variant.graphs, graph: file_ref(bundle, path)}
    variants = {**spec.variants, "onnx-fp32": msgspec.structs.replace(variant, graphs=graphs)}
    save(bundle, msgspec.structs.replace(spec, variants=variants))
    return bundle


def load_spec(bundle: Path) -> Any:
    """Return what bundle.json says of files that do not fit it any more."""
    from harec_deploy.spec import BundleSpec

    return msgspec.json.decode((bundle / "bundle.json").read_bytes(), type=BundleSpec)


def noisy(values: Any) -> Any:
    return values + np.random.default_rng(1).normal(0, values.std(), values.shape)


def by_name(told: Comparison) -> dict[str, Any]:
    return {stage.name: stage for stage in told.stages}


@pytest.fixture(scope="module")
def passing(exported: Path, videos: Path) -> Comparison:
    """What is measured of a variant that is as it should be."""
    return measure(exported, videos)


class TestModel:
    def test_a_faithful_variant_passes(self, passing: Comparison, exported: Path) -> None:
        told = passing
        assert told.passed
        assert told.failures == []
        assert told.source is None
        assert told.flipped == []
        assert (told.agreement.hits, told.agreement.count) == (6, 6)
        assert (told.agreement.low, told.agreement.high) == wilson(6, 6)
        assert 0 < told.max_abs_dp < 1e-4
        assert list(by_name(told)) == ["encoder", "head"]
        assert told.decoder_proof is None
        assert load(exported).spec.decoders == []

    def test_the_weights_are_the_reference_itself(self, bundle: Path, videos: Path) -> None:
        told = measure(bundle, videos, load={"runner": "torch"})
        assert told.max_abs_dp == told.mean_abs_dp == 0
        assert [stage.max_abs_dp for stage in told.stages] == [0, 0]

    def test_a_disturbed_encoder_is_found(self, bundle: Path, videos: Path) -> None:
        told = measure(disturb(bundle, "encoder", noisy), videos)
        assert not told.passed
        assert told.source == "encoder"
        encoder, head = by_name(told)["encoder"], by_name(told)["head"]
        assert encoder.flipped == len(told.flipped) > 0
        assert encoder.figures["mean_relative_error"] > 0.1
        assert encoder.figures["max_cosine_distance"] > 1e-3
        assert head.flipped == 0
        assert head.max_abs_dp < 1e-4
        assert encoder.max_abs_dp == pytest.approx(told.max_abs_dp, abs=1e-4)

    def test_a_disturbed_head_is_found(self, bundle: Path, videos: Path) -> None:
        told = measure(disturb(bundle, "head", noisy, "classifier.weight"), videos)
        assert told.source == "head"
        assert by_name(told)["encoder"].max_abs_dp < 1e-4
        assert by_name(told)["encoder"].figures["max_relative_error"] < 1e-4
        assert by_name(told)["head"].figures["max_logit_difference"] > 0.1

    def test_outputs_that_are_not_finite_fail(self, bundle: Path, videos: Path) -> None:
        told = measure(disturb(bundle, "head", lambda values: values * np.nan, "classifier.weight"), videos)
        assert told.source == "head"
        assert any("probabilities move by up to nan" in failure for failure in told.failures)

    def test_a_precision_without_proof_can_be_measured(self, bundle: Path, videos: Path) -> None:
        with pytest.raises(UsageError, match="no way to run the bundle with runner torch in precision bf16"):
            harec_deploy.load(bundle, runner="torch", precision="bf16")
        told = measure(bundle, videos, load={"runner": "torch", "precision": "bf16"})
        assert (told.variant, told.precision) == ("torch", "bf16")
        assert told.source == "encoder"  # its head stays in fp32
        assert by_name(told)["head"].max_abs_dp == 0

    def test_a_clip_wise_model_is_one_step(self, tmp_path: Path, videos: Path) -> None:
        """The graph is the mean colour, the weights are a ConvLSTM's."""
        folder = clipwise(tmp_path / "bundle")
        edit(folder, lambda spec: spec.update(architecture="convlstm", feature_dim=0))
        self.weights_of_convlstm(folder)
        told = measure(folder, videos)
        assert list(by_name(told)) == ["model"]
        assert told.source == "model"
        assert not told.passed
        told = measure(folder, videos, load={"runner": "torch"}, decoder="coarse")
        assert list(by_name(told)) == ["decode", "resize", "model"]
        assert told.source == "resize"

    def weights_of_convlstm(self, folder: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from harec_deploy.models import build

        torch.manual_seed(1)
        spec = load_spec(folder)
        save_file(build("convlstm", spec.head, 3, size=spec.size).state_dict(), folder / spec.weights.path)
        save(folder, msgspec.structs.replace(spec, weights=file_ref(folder, folder / spec.weights.path)))


class TestDecoder:
    def test_other_pictures_are_told_from_another_resize(self, bundle: Path, videos: Path) -> None:
        told = by_name(brighter := measure(bundle, videos, decoder="brighter"))
        assert brighter.source == "decode"
        assert 0.9 * BRIGHTER_BY < told["decode"].figures["mean_level_difference"] <= BRIGHTER_BY
        assert told["decode"].figures["max_level_difference"] == BRIGHTER_BY
        assert (brighter.agreement.count, brighter.refused) == (3, 3)  # it takes no AVI
        assert told["resize"].figures["mean_level_difference"] < 0.1
        assert told["resize"].max_abs_dp < told["decode"].max_abs_dp / 10

        told = by_name(coarse := measure(bundle, videos, decoder="coarse"))
        assert coarse.source == "resize"
        assert told["decode"].figures == {"max_level_difference": 0, "mean_level_difference": 0}
        assert told["decode"].max_abs_dp == 0
        assert told["resize"].figures["mean_level_difference"] > 5
        assert [stage.clips for stage in coarse.stages] == [6] * 4

    def test_its_proof_is_stored(self, bundle: Path, videos: Path) -> None:
        told = measure(bundle, videos, decoder="brighter")
        (proof,) = load(bundle).spec.decoders
        assert proof == told.decoder_proof
        assert (proof.clips, proof.decoder_version) == (3, "7")
        assert load(bundle).spec.check is not None

    def test_the_real_one_on_a_cpu(self, bundle: Path, tmp_path: Path) -> None:
        for seed in range(2):
            make_video(tmp_path / f"{seed}.webm", codec="libvpx-vp9", frames=30, seed=seed, width=160, height=160)
        make_video(tmp_path / "other.mp4", frames=30)
        told = measure(bundle, tmp_path, decoder="dali")
        assert (told.agreement.count, told.refused) == (2, 1)
        stages = by_name(told)
        assert [stages[name].clips for name in ("decode", "resize")] == [2, 2]
        assert told.source in ("decode", "resize")
        assert stages["encoder"].max_abs_dp < 1e-4
        for name in ("decode", "resize"):  # DALI's colours and its antialiasing are others than swscale's
            assert 0 < stages[name].figures["mean_level_difference"] < 12

    @pytest.mark.parametrize("mode", ["stretch", "crop"])
    @pytest.mark.parametrize("aspect", [Fraction(1), Fraction(2)])
    def test_pictures_are_scaled_as_the_reference_does(
        self, bundle: Path, tmp_path: Path, mode: Any, aspect: Fraction
    ) -> None:
        path = make_video(tmp_path / "v.mp4", frames=20, width=160, height=160, pixel_aspect=aspect)
        spec, video = load(bundle).spec, VideoFile.at("v", path)
        size = Size(width=64, height=64, mode=mode)
        decoder = PyAVDecoder()
        native = frames_of(decoder, video, spec, Size(width=160, height=160)).pixels
        wanted = frames_of(decoder, video, spec, size).pixels
        assert np.abs(scaled(native, size, aspect) - wanted).mean() < 4  # of noise, by way of RGB
        if mode == "crop" and aspect != 1:
            assert np.abs(scaled(native, size) - wanted).mean() > 10  # another part of the picture

    def test_a_picture_that_is_too_large_is_not_looked_at(self, bundle: Path, videos: Path) -> None:
        info = PyAVDecoder().probe(next(videos.rglob("*.mp4")))
        assert native_size(info, 16) == Size(width=160, height=120)
        assert native_size(info, NATIVE_BYTES // (160 * 120 * 3) + 1) is None
        assert native_size(replace(info, width=5000, height=8), 1) is None


class TestGate:
    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"agreement": Share.of(99, 100)}, None),
            ({"agreement": Share.of(989, 1000)}, "labels kept: 98.9% of 1000 (95 % between 98.0% and 99.4%), at least"),
            ({"accuracy": Share.of(795, 1000), "reference_accuracy": Share.of(800, 1000)}, None),
            (
                {"accuracy": Share.of(794, 1000), "reference_accuracy": Share.of(800, 1000)},
                "accuracy falls by 0.6 points, at most 0.5 are allowed",
            ),
            ({"accuracy": Share.of(900, 1000), "reference_accuracy": Share.of(800, 1000)}, None),
            ({"accuracy": None, "reference_accuracy": None}, None),
            ({"max_abs_dp": 2e-3}, "probabilities move by up to 0.002, at most 0.001 are allowed"),
            ({"max_abs_dp": 2e-3, "precision": "bf16"}, None),
            ({"max_abs_dp": float("nan"), "precision": "bf16"}, "probabilities move by up to nan"),
        ],
    )
    def test_each_limit(self, passing: Comparison, change: dict[str, Any], told: str | None) -> None:
        failures = failures_of(msgspec.structs.replace(passing, **change))
        assert len(failures) == (told is not None)
        assert not told or failures[0].startswith(told)

    def test_the_source_is_what_moves_most(self) -> None:
        def stage(name: str, moved: float) -> Any:
            tally = Tally(name)
            tally.add(np.float32([0.5, 0.5]), np.float32([0.5 + moved, 0.5 - moved]))
            return tally.stage()

        some = [stage("decode", 0.01), stage("encoder", 0.2), stage("head", 0.1)]
        assert source_of(some) == "encoder"
        assert source_of([*some, stage("model", float("nan"))]) == "model"
        assert source_of([stage("encoder", 1e-6), stage("head", 0.0)]) is None
        assert Tally("decode").stage() is None

    @pytest.mark.parametrize(
        ("path", "truth"),
        [
            ("in/jump/a.mp4", "jump"),
            ("in/jump/group 1/a.mp4", "jump"),
            ("jump/in/group/a.mp4", None),
            ("in/Jump/a.mp4", None),
            ("in/jump.mp4", None),
        ],
    )
    def test_the_truth_is_the_folders_name(self, path: str, truth: str | None) -> None:
        assert truth_of(Path("/data") / path, ["climb", "jump"]) == truth


class TestWhatIsTold:
    def test_labelled_clips_have_accuracy_by_class(self, passing: Comparison) -> None:
        told = passing
        assert told.accuracy == told.reference_accuracy
        assert told.accuracy is not None
        assert told.accuracy.count == 6
        assert [row.name for row in told.classes] == ["climb", "jump", "swim"]
        assert [row.labelled for row in told.classes] == [2, 2, 2]
        assert sum(row.right for row in told.classes) == told.accuracy.hits
        assert sum(row.clips for row in told.classes) == 6
        assert all(row.kept == row.clips for row in told.classes)

    def test_others_have_none(self, bundle: Path, tmp_path: Path) -> None:
        make_video(tmp_path / "a.mp4", frames=20)
        (tmp_path / "b.mp4").write_text("no video")
        told = measure(bundle, tmp_path)
        assert told.accuracy is told.reference_accuracy is None
        assert (told.agreement.count, told.undecodable) == (1, 1)
        (row,) = told.classes
        assert (row.clips, row.kept, row.labelled) == (1, 1, 0)

    def test_the_page_holds_it_all(self, bundle: Path, videos: Path, tmp_path: Path) -> None:
        disturb(bundle, "encoder", noisy)
        hostile = tmp_path / "<b>jump" / "<img src=x onerror=alert(1)>.mp4"
        hostile.parent.mkdir()
        hostile.write_bytes(next(videos.rglob("*.mp4")).read_bytes())
        recognizer = harec_deploy.load(bundle, runner="onnx", precision="fp32", on_trial=True)
        told = compare(recognizer, [str(videos), str(hostile)], decoder="brighter")
        name = msgspec.structs.replace(told.flipped[0], clip=str(hostile))
        write_page(msgspec.structs.replace(told, flipped=[name, *told.flipped]), tmp_path / "page.html")
        page = Page((tmp_path / "page.html").read_text())
        assert page.all("img") == []
        assert page.script == ""
        assert "<img src=x onerror=alert(1)>.mp4" in page.text
        for words in ("Most of it comes from: encoder.", "Why it does not pass", "brighter 7", "By class", "decode"):
            assert words in page.text
        assert all(flip.clip in page.text for flip in told.flipped)
        (policy,) = (meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta)
        assert policy.startswith("default-src 'none';")


class TestCommand:
    def test_a_disturbed_variant_exits_5(self, bundle: Path, videos: Path, tmp_path: Path) -> None:
        disturb(bundle, "encoder", noisy)
        page = tmp_path / "page.html"
        done = run("verify", str(bundle), str(videos), "--runner", "onnx", "--json", "--html", str(page))
        assert done.returncode == 5, done.stderr
        told = json.loads(done.stdout)
        assert told["source"] == "encoder"
        assert not told["passed"]
        flip = told["flipped"][0]
        shown = f"{flip['clip']} ({flip['wanted']} {flip['wanted_score']:.2f} -> {flip['got']} {flip['got_score']:.2f})"
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error [proof_failed]: onnx-fp32 on onnx in fp32: labels kept: ")
        assert shown in last
        assert "most of it comes from: encoder" in last
        assert "Traceback" not in done.stderr
        assert "Labels that differ" in page.read_text()

    def test_a_faithful_one_exits_0_with_tables(self, exported: Path, videos: Path) -> None:
        done = run(
            "verify", str(exported), str(videos), "--runner", "onnx", "--variant", "onnx-fp32", "--max-clips", "3"
        )
        assert done.returncode == 0, done.stderr
        assert "labels kept 100.0% of 3 (95 % between 43.8% and 100.0%); |dp|" in done.stderr
        assert "accuracy " in done.stderr
        assert all(word in done.stdout for word in ("encoder", "head", "clips by class", "reference right", "climb"))
        assert "labels that differ" not in done.stdout

    def test_without_pytorch_only_a_decoder_can_be_compared(self, bundle: Path, videos: Path) -> None:
        def verify(*more: str) -> subprocess.CompletedProcess[str]:
            code = "import sys; sys.modules['torch'] = None; from harec_deploy.decode import DECODERS; "
            code += f"DECODERS['brighter'] = {DECODERS['brighter']!r}; "
            code += "from harec_deploy.__main__ import main; main()"
            line = [sys.executable, "-c", code, "verify", str(bundle), str(videos), "--runner", "openvino", *more]
            root = Path(__file__).parents[1]
            return subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=root)

        done = verify()
        assert done.returncode == 1
        wanted = "a comparison with PyTorch needs the package torch: pip install 'harec-deploy[torch]'"
        assert done.stderr == f"error [missing_dependency]: {wanted}\n"
        done = verify("--decoder", "brighter", "--json")
        assert done.returncode == 0, done.stderr
        (proof,) = load(bundle).spec.decoders
        assert json.loads(done.stdout) == msgspec.to_builtins(proof)
        assert "only the decoder was compared: the rest needs PyTorch" in done.stderr
        assert "brighter 7 on cpu beside pyav: 100.0% of 3 clips keep their label" in done.stderr
