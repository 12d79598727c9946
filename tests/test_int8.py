"""The variant onnx-int8 and the gates of every proof: what fails leaves nothing, and says which labels changed."""

import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import harec_deploy
from harec_deploy.bundle import file_ref, load, save
from harec_deploy.discover import VideoFile
from harec_deploy.errors import MissingDependency, ProofError, UsageError
from harec_deploy.export import export, verify
from harec_deploy.export import int8 as int8_module
from harec_deploy.export.fused import write_fused
from harec_deploy.export.int8 import Int8Options
from harec_deploy.export.verify import ProofClips, failure, measured, prove, read_clips
from harec_deploy.models import ARCHITECTURES, build
from harec_deploy.runners import installed
from harec_deploy.spec import Proof
from tests.conftest import write_bundle
from tests.test_cli import run

OUTLIER = 1e4


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, exported: Path, videos: Path) -> tuple[Path, list[str]]:
    """A bundle with fp32 and int8 graphs, and what export said. Do not write to it."""
    folder, told = tmp_path_factory.mktemp("int8") / "bundle", list[str]()
    shutil.copytree(exported, folder)
    how = Int8Options(calibrate=[str(videos / "jump"), str(videos / "swim")])
    export(folder, [str(videos)], precision="int8", int8=how, progress=told.append)
    return folder, told


def make_fragile(folder: Path, times: float = OUTLIER) -> None:
    """Make int8 destroy what an lrcn computes: one channel is ``times`` the others, and scaled down again behind."""
    bundle = load(folder)
    path = bundle.path(bundle.spec.weights)
    state = load_file(path)
    for name in ("encoder.backbone.layers.1.weight", "encoder.backbone.layers.1.bias"):
        state[name][0] *= times
    state["encoder.backbone.layers.4.weight"][:, 0] /= times
    save_file(state, path)
    save(folder, msgspec.structs.replace(bundle.spec, weights=file_ref(folder, path)))


@pytest.fixture
def fragile(tmp_path: Path, videos: Path) -> Path:
    """A bundle whose function int8 destroys."""
    folder = write_bundle(tmp_path / "bundle", videos=videos).folder
    make_fragile(folder)
    return folder


def test_the_variant_is_proved_in_every_runner(int8: tuple[Path, list[str]], videos: Path) -> None:
    folder, told = int8
    spec = load(folder).spec
    variant = spec.variants["onnx-int8"]
    assert {proof.runner for proof in variant.proofs} == {runner.name for runner in installed()}
    for proof in variant.proofs:
        assert (proof.precision, proof.clips, proof.top1_agreement, proof.passed) == ("int8", 6, 1.0, True)
        assert 1e-6 < proof.max_abs_dp < 0.1
        assert proof.labelled == 6
        assert proof.accuracy == proof.reference_accuracy
    assert variant.quantisation is not None
    assert (variant.quantisation.method, variant.quantisation.clips, variant.quantisation.frames) == ("minmax", 4, 80)
    assert variant.quantisation.kept_float == []
    assert variant.graphs["encoder"].size < 0.4 * spec.variants["onnx-fp32"].graphs["encoder"].size
    assert "4 of the proof's 6 clips calibrate too" in " ".join(told)
    recognizer = harec_deploy.load(folder, runner="openvino", precision="int8")
    video = next(videos.rglob("*.mp4"))
    assert recognizer.label(video).label == harec_deploy.load(folder, precision="fp32").label(video).label


def test_one_file_equals_the_pair(int8: tuple[Path, list[str]], tmp_path: Path) -> None:
    bundle = load(int8[0])
    graphs = {name: bundle.path(file) for name, file in bundle.spec.variants["onnx-int8"].graphs.items()}
    one = write_fused(graphs, bundle.spec, tmp_path)["model"]
    clips, _ = bundle.check_clips() or pytest.fail("no check clips")
    for runner in installed():
        model, encoder, head = (runner.load_file(file, "int8") for file in (one, graphs["encoder"], graphs["head"]))
        wanted = head(encoder(clips.reshape(-1, 64, 64, 3)).reshape(len(clips), 20, -1))
        np.testing.assert_allclose(model(clips), wanted, atol=1e-3)


def test_training_clips_calibrate_where_none_are_named(exported: Path, videos: Path) -> None:
    spec = load(exported).spec
    noted = msgspec.structs.replace(spec, training={"calibration_clips": [str(videos / "swim")]})
    proof, told = read_clips(spec, [str(videos / "jump")], limit=10), list[str]()
    clips = int8_module._calibration_clips(noted, proof, (), told.append)
    assert [Path(name).parent.name for name in clips.names] == ["swim"] * 2
    assert told == []
    assert int8_module._calibration_clips(spec, proof, (), told.append) is proof
    assert "2 of the proof's 2 clips calibrate too" in told[0]


class TestFragile:
    def test_it_fails_and_leaves_nothing(self, fragile: Path, videos: Path) -> None:
        before = (fragile / "bundle.json").read_bytes()
        with pytest.raises(ProofError, match=r"onnx-int8 on \w+ in int8 is not the trained model") as caught:
            export(fragile, [str(videos)], precision="int8", int8=Int8Options(keep_float="none"))
        assert caught.value.exit_status == 5
        assert (fragile / "bundle.json").read_bytes() == before
        assert {path.name for path in fragile.iterdir()} == {"bundle.json", "weights.safetensors"}
        assert " -> " in str(caught.value)  # a flipped clip with both labels

    def test_auto_keeps_the_layer_that_suffers_in_float(self, fragile: Path, videos: Path) -> None:
        told: list[str] = []
        exported = export(fragile, [str(videos)], precision="int8", progress=told.append)
        variant = exported.spec.variants["onnx-int8"]
        assert variant.quantisation is not None
        assert "backbone.layers.4" in variant.quantisation.kept_float
        assert len(variant.quantisation.kept_float) <= variant.quantisation.layers / 2
        assert all(proof.passed for proof in variant.proofs)
        assert any("measuring each of" in text for text in told)

    def test_auto_gives_up_where_too_much_would_be_float(
        self, fragile: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(int8_module, "MAX_FLOAT_SHARE", 0.0)
        with pytest.raises(ProofError, match=r"onnx-int8 on \w+ in int8 is not the trained model"):
            export(fragile, [str(videos)], precision="int8")
        assert {path.name for path in fragile.iterdir()} == {"bundle.json", "weights.safetensors"}

    def test_layers_can_be_named(self, fragile: Path, videos: Path) -> None:
        how = Int8Options(keep_float="backbone.layers.4, backbone.layers.0")
        exported = export(fragile, [str(videos)], precision="int8", int8=how)
        variant = exported.spec.variants["onnx-int8"]
        assert variant.quantisation is not None
        assert variant.quantisation.kept_float == ["backbone.layers.4", "backbone.layers.0"]


class TestGates:
    @pytest.mark.parametrize(
        ("flips", "right", "accuracies", "passed"),
        [
            (1, "reference", (0.995, 1.0), True),
            (2, "reference", (0.99, 1.0), False),  # the share of labels is 0.99 all the same
            (2, "variant", (1.0, 0.99), True),
            (2, "unknown", (None, None), True),
            (3, "unknown", (None, None), False),
        ],
    )
    def test_labels_and_accuracy(
        self,
        exported: Path,
        videos: Path,
        monkeypatch: pytest.MonkeyPatch,
        flips: int,
        right: str,
        accuracies: tuple[float | None, float | None],
        passed: bool,
    ) -> None:
        """One clip 200 times, of which the reference is said to give some another label."""
        monkeypatch.setitem(verify.MAX_ABS_DP, "fp32", 1.0)
        bundle = load(exported)
        pixels = read_clips(bundle.spec, [str(videos)], limit=1).pixels
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        label = int(recognizer.predict(pixels).argmax())
        other = (label + 1) % len(bundle.spec.classes)
        logits = np.eye(3, dtype=np.float32)[[other] * flips + [label] * (200 - flips)]
        truths = [other if right == "reference" else label] * flips + [label] * (200 - flips)
        folders = [bundle.spec.classes[truth] for truth in truths]
        if right == "unknown":
            folders = ["no class"] * 200
        names = [f"{place}.mp4" for place in range(200)]
        paths = [Path(folder) / name for folder, name in zip(folders, names, strict=True)]
        real = ProofClips(names, pixels.repeat(200, 0), [VideoFile(path.name, path) for path in paths])
        proof = prove(recognizer, real, logits)
        assert proof.passed is passed
        assert (proof.accuracy, proof.reference_accuracy) == accuracies
        assert proof.flipped == names[:flips]
        assert {(flip.wanted, flip.got) for flip in proof.flips} == {
            (bundle.spec.classes[other], bundle.spec.classes[label])
        }
        told = str(failure(recognizer.execution, proof))
        assert f"0.mp4 ({bundle.spec.classes[other]} 0.58 -> {bundle.spec.classes[label]} 0." in told

    def test_few_clips_are_told_with_their_interval(self, exported: Path) -> None:
        proof = load(exported).spec.variants["onnx-fp32"].proofs[0]
        assert measured(proof).startswith("100.0% of 6 clips keep their label (95 % interval 61.0% to 100.0%), ")
        assert "interval" not in measured(msgspec.structs.replace(proof, clips=100))


def test_old_proofs_still_load(exported: Path) -> None:
    (proof, *_) = load(exported).spec.variants["onnx-fp32"].proofs
    old = msgspec.to_builtins(proof)
    for name in ("flips", "labelled", "accuracy", "reference_accuracy"):
        old.pop(name)
    assert msgspec.convert(old, Proof) == msgspec.structs.replace(
        proof, flips=[], labelled=0, accuracy=None, reference_accuracy=None
    )


class TestRefusals:
    def test_clip_wise_models(self, tmp_path: Path, videos: Path) -> None:
        base = ARCHITECTURES["convlstm"]
        model = build("convlstm", base.head, 3, size=base.size)
        save_file(model.state_dict(), tmp_path / "weights.safetensors")
        spec = load(write_bundle(tmp_path / "lrcn").folder).spec
        weights = file_ref(tmp_path, tmp_path / "weights.safetensors")
        save(
            tmp_path,
            msgspec.structs.replace(
                spec, architecture="convlstm", head=base.head, feature_dim=0, sampling=base.sampling, weights=weights
            ),
        )
        with pytest.raises(UsageError, match="convlstm takes whole clips: such models have no int8 form yet, use fp32"):
            export(tmp_path, [str(videos)], precision="int8")

    def test_without_onnx_runtime(self, bundle: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "harec_deploy.runners.onnx", None)
        with pytest.raises(MissingDependency, match=r"pip install 'harec-deploy\[ort\]'"):
            export(bundle, [str(videos / "jump")], precision="int8")
        assert not (bundle / "onnx-int8").exists()


class TestCommand:
    def test_it_says_what_was_measured(self, bundle: Path, videos: Path) -> None:
        clips = ["--clips", str(videos / "jump"), "--calibrate", str(videos / "swim")]
        done = run("export", str(bundle), "--precision", "int8", *clips, "--keep-float", "backbone.layers.0")
        assert done.returncode == 0, done.stderr
        assert "calibrating by minmax on 40 frames of 2 clips" in done.stderr
        assert "calibrate too" not in done.stderr
        assert "onnx-int8 keeps 1 of 4 layers in float: backbone.layers.0" in done.stderr
        assert "onnx-int8 on openvino in int8: 100.0% of 2 clips keep their label (95 % interval 34.2%" in done.stderr
        shown = run("inspect", str(bundle)).stdout.replace("\n", " ")
        assert "minmax on 40 frames of 2 clips; layers in float, of 4: backbone.layers.0" in shown

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--precision", "int8", "--calibration", "max"], "unknown calibration 'max'; allowed are minmax, "),
            (["--calibrate", "x"], "--calibrate is about int8 graphs: it needs --precision int8, and no --tensorrt"),
            (["--keep-float", "auto"], "--keep-float is about int8 graphs: it needs --precision int8, and no"),
        ],
    )
    def test_what_is_not_allowed(self, bundle: Path, videos: Path, options: list[str], told: str) -> None:
        done = run("export", str(bundle), "--clips", str(videos / "jump"), *options)
        assert done.returncode == 2
        assert f"error [usage]: {told}" in done.stderr
        assert not (bundle / "onnx-int8").exists()
