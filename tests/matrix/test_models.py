"""Table F of the test matrix: the model, its graphs and its labels.

Not covered, because there is no TensorRT runner yet:

    F10  a truncated or flipped engine: the engine's hash would be checked as every file's of a bundle is (F6)
    F11  an engine without its description: a bundle names every file, there are no loose engines
    F12  an engine of another TensorRT version or GPU
    F14  a GPU that is absent, full or lost; nothing here runs on one
    F15  out of memory at a large batch, which is halved

F18 is covered for PyTorch, ONNX Runtime and OpenVINO. A wrong order of classes (F13) cannot be told from a right one:
bundle.json is what everything else is checked against; but rows of the two orders are never mixed.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
import torchvision
from av.video.frame import VideoFrame

from harec_deploy.bundle import Bundle, file_ref, load
from harec_deploy.errors import BundleError, OutputError, UsageError
from harec_deploy.export.verify import prove, read_clips, reference_logits
from harec_deploy.label.options import Options, Progress
from harec_deploy.label.run import label
from harec_deploy.label.summary import Summary
from harec_deploy.loading import load as load_recognizer
from harec_deploy.models import from_bundle
from harec_deploy.models.encoders import frame_encoder
from harec_deploy.recognizer import Recognizer, softmax
from harec_deploy.runners import Execution, get
from tests.attacks.tiny import CLASSES, FRAMES, SIDE, encoder, head, tiny_bundle
from tests.media import Clip, make_video, write_frames

RUNNERS = ("openvino", "onnx")


def run(bundle: Path, folder: Path, out: Path, **options: Any) -> Summary:
    return label(bundle, [str(folder)], Options(**({"out": out, "runner": "openvino", "precision": "fp32"} | options)))


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    spec = json.loads((bundle / "bundle.json").read_text())
    change(spec)
    (bundle / "bundle.json").write_text(json.dumps(spec))


def with_file(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file of the bundle, and its hash, so that only its content can be refused."""
    (bundle / name).write_bytes(content)
    ref = msgspec.to_builtins(file_ref(bundle, bundle / name))

    def change(spec: dict[str, Any]) -> None:
        graphs = spec["variants"]["onnx-fp32"]["graphs"]
        if name == "weights.safetensors":
            spec["weights"] = ref
        else:
            graphs[Path(name).stem] = ref

    edit(bundle, change)


def coloured(path: Path, colour: tuple[int, int, int], frames: int = 6) -> Path:
    """Write a video of one colour."""
    clip = Clip(width=64, height=64, frames=frames, b_frames=0)
    pixels = np.full((64, 64, 3), colour, dtype=np.uint8)
    return write_frames(path, clip, (VideoFrame.from_ndarray(pixels, format="rgb24") for _ in range(frames)))


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """The state dict of a network that encoders are made of."""
    torch.manual_seed(0)
    return torchvision.models.get_model("mobilenet_v2", weights=None).state_dict()


class TestCheckpoints:
    """F1, F2: where the project reads PyTorch files. What unpickling could run is in tests/attacks/checkpoint.py."""

    def refusal(self, path: Path) -> str:
        with pytest.raises(UsageError) as caught:
            frame_encoder("mobilenet_v2", str(path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_f1_code_is_named_and_not_run(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"

        class Bomb:
            def __reduce__(self) -> object:
                return os.mkdir, (str(marker),)

        torch.save(Bomb(), tmp_path / "w.pth")
        assert "holds no plain weights: it asks for posix.mkdir to be run" in self.refusal(tmp_path / "w.pth")
        assert not marker.exists()

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
    def test_f2_truncated(self, tmp_path: Path, state: dict[str, torch.Tensor], share: float) -> None:
        torch.save(state, tmp_path / "w.pth")
        data = (tmp_path / "w.pth").read_bytes()
        (tmp_path / "w.pth").write_bytes(data[: int(share * len(data))])
        assert "holds no plain weights" in self.refusal(tmp_path / "w.pth")

    def test_f2_zip_bomb(self, tmp_path: Path) -> None:
        import zipfile

        torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
        with (
            zipfile.ZipFile(tmp_path / "plain.pth") as plain,
            zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
        ):
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        assert (tmp_path / "w.pth").stat().st_size < 1 << 16
        assert "it unpacks to 4" in self.refusal(tmp_path / "w.pth")

    def test_f2_wrong_keys_are_listed(self, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
        torch.save({"features.0.0.weight": torch.zeros(1), "other": torch.zeros(1)}, tmp_path / "w.pth")
        told = self.refusal(tmp_path / "w.pth")
        assert "tensors missing ['classifier.1.bias'" in told
        assert "1 unexpected ['other']" in told
        torch.save({1: torch.zeros(1), "a": torch.zeros(1)}, tmp_path / "w.pth")
        assert "expected names and tensors" in self.refusal(tmp_path / "w.pth")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_f4_nan_in_encoder_weights(self, tmp_path: Path, state: dict[str, torch.Tensor], value: float) -> None:
        bad = {name: tensor.clone() for name, tensor in state.items()}
        bad["features.0.0.weight"].view(-1)[5] = value
        torch.save(bad, tmp_path / "w.pth")
        assert "features.0.0.weight holds NaN or infinity" in self.refusal(tmp_path / "w.pth")


def safetensors(header: dict[str, Any], size: int) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


def entry(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        (1 << 63).to_bytes(8, "little") + b"{}",
        safetensors({"a": entry(0, 8), "b": entry(4, 12)}, 12),
        safetensors({"a": entry(0, 4), "b": entry(8, 12)}, 12),
        safetensors({"a": entry(0, 4)}, 12),
        safetensors({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 4]}}, 4),
    ],
    ids=["header of 2^63", "overlap", "hole", "hole at the end", "shape -1"],
)
def test_f3_weights_that_break_the_format(tmp_path: Path, content: bytes) -> None:
    bundle = tiny_bundle(tmp_path / "bundle").folder
    with_file(bundle, "weights.safetensors", content)
    with pytest.raises(BundleError, match=r"weights\.safetensors is no safetensors file"):
        load(bundle)


class TestNotFinite:
    """F4, F5: NaN never becomes a label."""

    def test_f4_nan_in_a_graph_is_refused_by_the_check_clips(self, tmp_path: Path) -> None:
        weight = np.eye(3, dtype=np.float32)
        weight[1, 1] = np.nan
        check = {
            "clips": np.full((1, FRAMES, SIDE, SIDE, 3), 9, dtype=np.uint8),
            "logits": np.full((1, 3), 9, dtype=np.float32),
        }
        good = tiny_bundle(tmp_path / "good", check=check).folder
        bad = tiny_bundle(tmp_path / "bad", graphs={"head": head(weight).SerializeToString()}, check=check).folder
        for runner in RUNNERS:
            assert load_recognizer(good, runner=runner, precision="fp32").spec.classes == CLASSES
            with pytest.raises(BundleError, match="gives other probabilities here than where it was exported"):
                load_recognizer(bad, runner=runner, precision="fp32")

    @pytest.mark.parametrize("runner", RUNNERS)
    def test_f5_nan_for_some_videos_costs_those(self, tmp_path: Path, runner: str) -> None:
        bundle = tiny_bundle(tmp_path / "bundle", graphs={"head": head(brightest=200).SerializeToString()}).folder
        (tmp_path / "in").mkdir()
        colours = {"a_red": (180, 20, 20), "b_white": (250, 250, 250), "c_blue": (20, 20, 180), "d_white": (240,) * 3}
        for name, colour in colours.items():
            coloured(tmp_path / "in" / f"{name}.mp4", colour)
        rows = {
            Path(row.path).stem: row for row in run(bundle, tmp_path / "in", tmp_path / "o.jsonl", runner=runner).rows
        }
        assert {name: row.label for name, row in rows.items() if row.status == "ok"} == {
            "a_red": "red",
            "c_blue": "blue",
        }
        for name in ("b_white", "d_white"):
            assert rows[name].status == "failed"
            assert rows[name].error is not None
            assert rows[name].error["code"] == "bad_output"
            assert (rows[name].label, rows[name].score, rows[name].top) == (None, None, [])
        lines = (tmp_path / "o.jsonl").read_text()
        assert "NaN" not in lines


ENCODER = encoder().SerializeToString()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        ENCODER[: len(ENCODER) // 2],
        ENCODER[:-1],
        b"<!doctype html><title>404 not found</title>",
        b"\x3a" + b"\x80\x80\x80\x80\x0c" + ENCODER[:100],  # a graph of 3 GB
        b"\x00" * 100,
        np.random.default_rng(0).bytes(1000),
    ],
    ids=["empty", "half", "all but a byte", "web page", "3 GB length", "zeros", "noise"],
)
@pytest.mark.parametrize("runner", RUNNERS)
def test_f6_a_file_that_is_no_graph(tmp_path: Path, content: bytes, runner: str) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", graphs={"encoder": content}).folder
    with pytest.raises(BundleError) as caught:
        load_recognizer(bundle, runner=runner, precision="fp32")
    assert "\n" not in str(caught.value)


def test_f7_external_data_is_refused_before_another_file_is_opened(tmp_path: Path) -> None:
    """The kinds of paths and links are in tests/attacks/external_data.py; here the kernel tells what was opened."""
    from tests.attacks.external_data import outside

    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.eye(3, dtype=np.float32).tobytes())
    bundle = tiny_bundle(tmp_path / "bundle", graphs={"head": outside("../../secret.bin")}, suffix=".bin").folder
    code = """
        import sys
        opened = []
        sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
        from pathlib import Path
        from harec_deploy.bundle import load
        try:
            load(Path(sys.argv[1]))
        except Exception as error:
            print(error)
        print([name for name in opened if "secret" in name])
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in code.splitlines()), str(bundle)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "keeps data in another file: refused" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


class TestOtherTask:
    """F8, F13: graphs whose shapes are not those of the bundle."""

    @pytest.mark.parametrize("runner", RUNNERS)
    def test_f8_another_frame_size(self, tmp_path: Path, runner: str) -> None:
        bundle = tiny_bundle(tmp_path / "bundle", graphs={"encoder": encoder(48).SerializeToString()}).folder
        with pytest.raises(BundleError, match="expected"):
            load_recognizer(bundle, runner=runner, precision="fp32").predict(
                np.zeros((1, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
            )

    @pytest.mark.parametrize("runner", RUNNERS)
    def test_f8_a_head_in_the_encoders_place(self, tmp_path: Path, runner: str) -> None:
        bundle = tiny_bundle(tmp_path / "bundle", graphs={"encoder": head().SerializeToString()}).folder
        with pytest.raises(BundleError, match="expected"):
            load_recognizer(bundle, runner=runner, precision="fp32").predict(
                np.zeros((1, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
            )

    @pytest.mark.parametrize("classes", [2, 5])
    def test_f13_a_head_of_another_number_of_classes(self, tmp_path: Path, classes: int) -> None:
        graph = head(np.ones((classes, 3), dtype=np.float32)).SerializeToString()
        bundle = tiny_bundle(tmp_path / "bundle", graphs={"head": graph}).folder
        coloured(tmp_path / "red.mp4", (200, 0, 0))
        with pytest.raises(BundleError, match="classes"):
            run(bundle, tmp_path / "red.mp4", tmp_path / "o.jsonl")

    def test_f8_check_clips_of_another_shape(self, tmp_path: Path) -> None:
        clips = np.zeros((1, FRAMES + 1, SIDE, SIDE, 3), dtype=np.uint8)
        logits = np.zeros((1, 3), dtype=np.float32)
        bundle = tiny_bundle(tmp_path / "bundle", check={"clips": clips, "logits": logits}).folder
        with pytest.raises(
            BundleError, match=r"check clips and logits are uint8 \(1, 5, 32, 32, 3\) .* not uint8 \(1, 4"
        ):
            load_recognizer(bundle)


def test_f9_one_changed_weight_fails_proof_and_check_clips(bundle: Path, videos: Path) -> None:
    """That export then leaves nothing behind is in tests/test_export.py."""
    path = bundle / "onnx-fp32/head.onnx"
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if "classifier.weight" in t.name)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    clips = read_clips(load(bundle).spec, [str(videos)], limit=3)
    logits = reference_logits(from_bundle(load(bundle)), clips)
    way = Execution("onnx-fp32", get("openvino"), "fp32")
    before = prove(Recognizer(load(bundle), way), clips, logits)
    with_file(bundle, "onnx-fp32/head.onnx", model.SerializeToString())
    changed = load(bundle)
    with pytest.raises(BundleError, match="gives other probabilities here than where it was exported"):
        Recognizer(changed, way)
    unchecked = Bundle(changed.folder, msgspec.structs.replace(changed.spec, check=None))
    after = prove(Recognizer(unchecked, way), clips, logits)
    assert before.passed
    assert before.max_abs_dp < 1e-4
    assert not after.passed
    assert after.max_abs_dp > 1e-3


class TestLabels:
    """F13: the classes in bundle.json."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: text.replace('"red",', ""), "the head gives 3 classes, bundle.json names 2"),
            (lambda text: text.replace('"red",', '"red","pink",'), "the head gives 3 classes, bundle.json names 4"),
            (lambda text: text.replace('"red"', '"blue"'), "all different"),
            (lambda text: text.replace('"red"', '" "'), "a class name is empty"),
            (lambda text: text.replace('"red"', '"\\ufeffred"'), "unprintable characters"),
            (lambda text: text.replace('"red"', '"red\\r"'), "unprintable characters"),
            (lambda text: text.replace('"red"', '"red\xff"').encode("latin-1"), "is damaged or was edited"),
            (lambda text: "\ufeff" + text, "is damaged or was edited"),
        ],
        ids=["fewer", "more", "twice", "blank", "BOM in a name", "CR in a name", "not UTF-8", "BOM"],
    )
    def test_f13_are_refused(self, tmp_path: Path, change: Callable[[str], str | bytes], message: str) -> None:
        path = tiny_bundle(tmp_path / "bundle").folder / "bundle.json"
        changed = change(json.dumps(json.loads(path.read_text()), separators=(",", ":")))
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        with pytest.raises(BundleError, match=message):
            load(tmp_path / "bundle")

    def test_f13_line_ends_do_not_matter(self, tmp_path: Path) -> None:
        path = tiny_bundle(tmp_path / "bundle").folder / "bundle.json"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        assert load(tmp_path / "bundle").spec.classes == CLASSES

    def test_f13_rows_of_another_order_are_not_mixed(self, tmp_path: Path) -> None:
        bundle = tiny_bundle(tmp_path / "bundle").folder
        video = coloured(tmp_path / "red.mp4", (200, 0, 0))
        assert run(bundle, video, tmp_path / "o.jsonl").rows[0].label == "red"
        edit(bundle, lambda spec: spec.update(classes=CLASSES[::-1]))
        with pytest.raises(OutputError, match="is of another run: bundle"):
            run(bundle, video, tmp_path / "o.jsonl")


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
import runpy
sys.argv = [{module!r}, *{arguments!r}]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""
HEAVY = ("torch", "torchvision", "lightning", "onnx", "onnxruntime", "onnxscript", "matplotlib", "safetensors")
EVERYTHING = (*HEAVY, "av", "openvino", "numpy", "PIL", "ray", "nvidia", "tensorrt")


def without(
    blocked: tuple[str, ...], *arguments: str, module: str = "harec_deploy"
) -> subprocess.CompletedProcess[str]:
    """Run a command where packages are missing."""
    code = BLOCKER.format(blocked=set(blocked), module=module, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


class TestMissingPackages:
    """F16: what is not installed is told in one line with the pip extra; the rest works without."""

    @pytest.mark.parametrize(
        ("module", "commands"),
        [
            ("harec_deploy", ("", "export", "label", "report", "inspect")),
            ("training", ("", "fit", "prepare", "evaluate")),
        ],
    )
    def test_f16_help_needs_nothing(self, module: str, commands: tuple[str, ...]) -> None:
        for command in commands:
            done = without(EVERYTHING, *command.split(), "--help", module=module)
            assert done.returncode == 0, done.stderr
            assert "Usage" in done.stdout

    def test_f16_label_and_report_need_only_the_core(self, tmp_path: Path) -> None:
        bundle = tiny_bundle(tmp_path / "bundle").folder
        coloured(tmp_path / "red.mp4", (200, 0, 0))
        out = str(tmp_path / "o.jsonl")
        done = without(HEAVY, "label", str(tmp_path / "red.mp4"), "-b", str(bundle), "-o", out)
        assert done.returncode == 0, done.stderr
        assert "onnx-fp32 on openvino" in done.stderr
        assert without(HEAVY, "report", out, "--root", str(tmp_path)).returncode == 0

    @pytest.mark.parametrize(
        ("blocked", "module", "arguments", "told"),
        [
            (
                "onnxruntime",
                "harec_deploy",
                ("label", "{tmp}", "-b", "{bundle}", "--runner", "onnx"),
                "harec-deploy[ort]",
            ),
            ("torch", "harec_deploy", ("export", "{bundle}"), "harec-deploy[export]"),
            ("onnx", "harec_deploy", ("export", "{bundle}"), "harec-deploy[export]"),
            ("lightning", "training", ("fit", "{tmp}/manifest.csv"), "harec-deploy[train]"),
            ("torch", "training", ("evaluate", "{tmp}"), "harec-deploy[train]"),
        ],
    )
    def test_f16_is_told_in_one_line(
        self, tmp_path: Path, blocked: str, module: str, arguments: tuple[str, ...], told: str
    ) -> None:
        bundle = tiny_bundle(tmp_path / "bundle").folder
        coloured(tmp_path / "red.mp4", (200, 0, 0))
        done = without((blocked,), *(text.format(tmp=tmp_path, bundle=bundle) for text in arguments), module=module)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"error [missing_dependency]: {blocked}" not in done.stderr
        assert f"needs the package {blocked}: pip install '{told}'" in done.stderr


class TestReplacedModel:
    """F17: what was verified when the run began is used to its end."""

    @pytest.mark.parametrize("runner", RUNNERS)
    def test_f17_a_loaded_model_does_not_look_at_its_files_again(self, tmp_path: Path, runner: str) -> None:
        bundle = tiny_bundle(tmp_path / "bundle").folder
        recognizer = load_recognizer(bundle, runner=runner, precision="fp32")
        clips = np.random.default_rng(0).integers(0, 256, (3, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        before = recognizer.predict(clips)
        for path in [path for path in bundle.rglob("*") if path.is_file()]:
            with path.open("r+b") as stream:  # in place: a mapping of the file would change with it
                stream.write(b"\0" * path.stat().st_size)
        np.testing.assert_array_equal(recognizer.predict(clips), before)
        shutil.rmtree(bundle)
        np.testing.assert_array_equal(recognizer.predict(clips), before)

    def test_f17_a_run_ends_with_the_model_it_began_with(self, tmp_path: Path) -> None:
        bundle = tiny_bundle(tmp_path / "bundle").folder
        other = tiny_bundle(
            tmp_path / "other", graphs={"head": head(np.eye(3, dtype=np.float32)[::-1].copy()).SerializeToString()}
        ).folder
        red = coloured(tmp_path / "red.mp4", (200, 0, 0)).read_bytes()
        (tmp_path / "in").mkdir()
        for number in range(300):
            (tmp_path / f"in/{number:03d}.mp4").write_bytes(red)
        done_before = 0

        def replace_the_model(progress: Progress) -> None:
            nonlocal done_before
            if not done_before:
                done_before = progress.done
                shutil.copytree(other, bundle, dirs_exist_ok=True)

        rows = run(bundle, tmp_path / "in", tmp_path / "o.jsonl", workers=1, progress=replace_the_model).rows
        assert 0 < done_before < len(rows) == 300
        assert {row.label for row in rows} == {"red"}
        assert run(bundle, tmp_path / "red.mp4", tmp_path / "new.jsonl").rows[0].label == "blue"  # it was replaced


def same_everywhere(bundle: Path, paths: list[Path], labels: int) -> None:
    """Compare evaluate's probabilities, in PyTorch, with those of every runner, file by file.

    labels: that PyTorch must give at least, so that a model which says one thing to everything proves nothing.
    """
    from training.datasets import Sample
    from training.evaluate import predict

    reference = predict(bundle, [Sample(path, "climb") for path in paths], progress=lambda done, total: None)
    assert len({expected.label for expected in reference}) >= labels
    for runner in RUNNERS:
        recognizer = load_recognizer(bundle, runner=runner, precision="fp32")
        for path, expected in zip(paths, reference, strict=True):
            result = recognizer.label(path)
            assert result.error is None, path
            assert result.label == expected.label, path
            assert result.score == pytest.approx(expected.score, abs=1e-4), path  # a tenth of the proof's gate


def test_f18_training_and_every_runner_see_the_same_clip(exported: Path, videos: Path, tmp_path: Path) -> None:
    paths = sorted(path for path in videos.rglob("*") if path.is_file())
    paths.append(make_video(tmp_path / "vfr.mkv", frames=40, vfr=True, width=200, height=90))
    paths.append(make_video(tmp_path / "vp9.webm", codec="libvpx-vp9", frames=30))
    same_everywhere(exported, paths, labels=3)
    bundle = load(exported)
    pixels = read_clips(bundle.spec, [str(videos)], limit=2).pixels
    with torch.inference_mode():
        wanted = softmax(from_bundle(bundle)(torch.from_numpy(pixels)).numpy() / bundle.spec.temperature)
    for runner in RUNNERS:
        got = load_recognizer(exported, runner=runner, precision="fp32").predict(pixels)
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.real_clips
def test_f18_on_real_clips(exported: Path, real_clips: Path) -> None:
    paths = sorted((real_clips / "ut_interaction").rglob("*.avi"))[::20]
    assert len(paths) >= 5
    same_everywhere(exported, paths, labels=1)
