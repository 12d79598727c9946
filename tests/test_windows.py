"""Overlapping windows share features: encoded once, equal to the bit to what each window alone would give."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import harec_deploy
from harec_deploy import Windowing
from harec_deploy.bundle import file_ref, load, save
from harec_deploy.decode import DECODERS, Frames, VideoInfo, choose
from harec_deploy.errors import UsageError
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.recognizer import Recognizer
from harec_deploy.sampling import ClipSampling, Window, shown_at, sliding
from harec_deploy.spec import Variant
from harec_deploy.windows import Track
from tests.conftest import write_bundle
from tests.media import flip_bytes, make_video

bounded = settings(deadline=None, derandomize=True, max_examples=100)


def info(duration_s: float) -> VideoInfo:
    return VideoInfo(duration_s, 10.0, 8, 8, "h264", "mov", "yuv420p", 0, None, 99, True, 0)


def parts_of(shown_s: np.ndarray, count: int, duration_s: float) -> list[tuple[Frames, np.ndarray]]:
    """Return frames at these times, some at a time, with their times as features (N, 1)."""
    pixels = np.zeros((len(shown_s), 1, 1, 3), dtype=np.uint8)
    parts = []
    for start in range(0, len(shown_s), count):
        own, last = shown_s[start : start + count], start + count >= len(shown_s)
        parts.append((Frames(info(duration_s), pixels[start : start + count], own, 0, last), own[:, None]))
    return parts


@bounded
@given(
    st.integers(1, 9),
    st.floats(0.3, 6),
    st.floats(0.05, 1),
    st.floats(0.3, 20),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_clips_are_those_of_all_frames_at_once(
    frames: int, window_s: float, share: float, duration_s: float, count: int, batch: int, seed: int
) -> None:
    sampling, windowing = ClipSampling(frames=frames), Windowing(window_s=window_s, stride_s=window_s * share)
    gaps = np.random.default_rng(seed).uniform(0.01, 0.4, 200)
    every = np.concatenate([[0.0], gaps.cumsum()])
    every = every[every < duration_s]
    times = sampling.timestamps_s(sliding(duration_s, window_s, window_s * share))
    wanted = every[shown_at(every, times)]
    track = Track(sampling, windowing)
    needed = np.unique(wanted)
    got = []
    for part, features in parts_of(needed, count, duration_s):
        clips = list(track.add(part, features, batch))
        assert all(len(each) <= batch for each in clips)
        got += clips
    np.testing.assert_array_equal(np.concatenate(got)[:, :, 0], wanted)
    assert len(track._shown_s) <= len(needed)


def test_frames_that_begin_anew_forget_what_was_given() -> None:
    track = Track(ClipSampling(frames=2), Windowing(window_s=1.0, stride_s=1.0))
    parts = parts_of(np.arange(0, 4, 0.25), 4, 4.0)
    for part, features in parts[:3]:
        for clips in track.add(part, features, 8):
            track.probabilities.append(clips)
    assert track.probabilities
    before = track.probabilities
    for part, features in parts:
        for clips in track.add(part, features + 100, 8):
            track.probabilities.append(clips)
    assert track.probabilities is not before
    np.testing.assert_array_equal(np.concatenate(track.probabilities)[:, 0, 0], [100.25, 101.25, 102.25, 103.25])


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([Window(0, 2), Window(1, 2), Window(0, 3)], "windows must ascend"),
        ([Window(2, 2)], "ends before it begins"),
        ([Window(float("nan"), 2)], "ends before it begins"),
        ([Window(0, float("inf"))], "ends before it begins"),
        ([], "no windows to look at"),
        (iter([Window(0, 2)]), "no windows to look at: allowed are a list of"),
    ],
)
def test_windows_that_cannot_be_streamed_are_refused(windows: list[Window], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Track(ClipSampling(), windows)


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=400, gop=24)


HOW = Windowing(window_s=4.0, stride_s=1.0)


@pytest.mark.parametrize("runner", ["openvino", "onnx"])  # PyTorch's sums depend on the size of the batch
def test_shared_features_give_the_same_logits_as_each_window_alone(
    exported: Path, long_video: Path, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = harec_deploy.load(exported, runner=runner, precision="fp32")
    encoded: list[int] = []
    encode = Recognizer.encode

    def counted(self: Recognizer, frames: np.ndarray) -> np.ndarray:
        encoded.append(len(frames))
        return encode(self, frames)

    monkeypatch.setattr(Recognizer, "encode", counted)
    windows = HOW.windows(16.0)
    track = Track(recognizer.spec.sampling, HOW)
    decoder, size = choose(), recognizer.spec.size
    for part in decoder.stream(long_video, track.timestamps_s, size, recognizer.part_frames):
        for clips in track.add(part, recognizer.keep(part.pixels), recognizer.batch_clips):
            track.probabilities.append(recognizer.judge(clips))
    shared = np.concatenate(track.probabilities)
    assert sum(encoded) == 80  # 5 frames a second, each once; the 13 windows have 260
    alone = [decoder.frames(long_video, recognizer.spec.sampling.timestamps_s(window), size) for window in windows]
    assert len(shared) == len(alone) == 13
    for got, frames in zip(shared, alone, strict=True):
        np.testing.assert_array_equal(got, recognizer.predict(frames.pixels[None])[0])


def clipwise(folder: Path) -> Path:
    """Write a bundle of one graph over whole clips: the mean colour, times a matrix."""
    bundle = write_bundle(folder)
    spec = bundle.spec
    weights = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9]], dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["clip"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "weights"], ["logits"]),
    ]
    shape = ["B", spec.sampling.frames, spec.size.height, spec.size.width, 3]
    constants = [
        onnx.numpy_helper.from_array(np.array([1, 2, 3], dtype=np.int64), "axes"),
        onnx.numpy_helper.from_array(np.float32(1 / 255), "scale"),
        onnx.numpy_helper.from_array(weights, "weights"),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("clip", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "onnx-fp32").mkdir()
    path = folder / "onnx-fp32" / "model.onnx"
    onnx.save(model, path)
    variant = Variant(precision="fp32", graphs={"model": file_ref(folder, path)}, made_with={}, proofs=[])
    save(folder, msgspec.structs.replace(spec, feature_dim=0, variants={"onnx-fp32": variant}))
    return load(folder).folder


def test_a_clip_wise_model_labels_windows_too(tmp_path: Path, long_video: Path) -> None:
    recognizer = harec_deploy.load(clipwise(tmp_path / "bundle"), runner="openvino", precision="fp32")
    assert not recognizer.framewise
    result = recognizer.label(long_video, windows=HOW)
    assert result.segments[-1].end_s == 16.0
    singles = recognizer.label(long_video, windows=HOW.windows(16.0))
    mean = dict(singles.top)
    assert dict(result.top) == pytest.approx(mean)
    whole = recognizer.label(long_video)
    assert whole.segments == ()
    with pytest.raises(UsageError, match="takes whole clips, not frames"):
        recognizer.encode(np.zeros((1, 64, 64, 3), np.uint8))
    options = Options(out=tmp_path / "o.jsonl", runner="openvino", precision="fp32", features=tmp_path / "f.npz")
    with pytest.raises(UsageError, match="--features: this model takes whole clips"):
        label(tmp_path / "bundle", [str(long_video)], options)


class TestRun:
    def run(self, exported: Path, folder: Path, *inputs: Path, **options: Any) -> list[dict[str, Any]]:
        made = Options(out=folder / "out.jsonl", runner="openvino", precision="fp32", **options)
        label(exported, [str(path) for path in inputs], made)
        return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]

    def test_rows_hold_the_segments_of_the_library(self, exported: Path, tmp_path: Path, long_video: Path) -> None:
        header, row = self.run(exported, tmp_path, long_video, window_s=4.0, stride_s=1.0, min_segment_s=0.0)
        assert header["windows"] == {"window_s": 4.0, "stride_s": 1.0, "smooth": 3, "min_segment_s": 0.0}
        alone = harec_deploy.load(exported, runner="openvino", precision="fp32").label(long_video, windows=HOW)
        assert row["segments"] == [[s.start_s, s.end_s, s.label, round(s.score, 6)] for s in alone.segments]
        assert row["label"] == alone.label
        assert row["score"] == round(alone.score or 0, 6)

    def test_damage_behind_the_first_parts_changes_no_row(self, exported: Path, tmp_path: Path) -> None:
        """The decoder begins the video anew; its rows are those of a decoder that never left anything out."""
        path = make_video(tmp_path / "cut.mp4", frames=400, gop=24)
        flip_bytes(path, start=int(path.stat().st_size * 0.7), every=501)
        (_, row) = self.run(exported, tmp_path, path, window_s=4.0, min_segment_s=0.0, smooth=1)
        assert row["status"] == "partial"
        recognizer = harec_deploy.load(exported, runner="openvino", precision="fp32")
        again = recognizer.label(path, windows=Windowing(window_s=4.0, stride_s=1.0, smooth=1))
        assert row["segments"] == [[s.start_s, s.end_s, s.label, round(s.score, 6)] for s in again.segments]

    def test_a_decoder_that_dies_midway_leaves_no_label(
        self, exported: Path, tmp_path: Path, long_video: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(DECODERS, "pyav", "tests.faulty:FaultyDecoder")
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
        folder = tmp_path / "in"
        folder.mkdir()
        for name in ("a.mp4", "b_midway.mp4", "c.mp4"):
            shutil.copy(long_video, folder / name)
        (_, *rows) = self.run(exported, tmp_path, folder, window_s=4.0, features=tmp_path / "f.npz")
        by_name = {Path(row["path"]).name: row for row in rows}
        assert by_name["b_midway.mp4"]["error"]["code"] == "decoder_crashed"
        assert by_name["b_midway.mp4"]["segments"] == []
        assert by_name["a.mp4"]["segments"] == by_name["c.mp4"]["segments"] != []
        with np.load(tmp_path / "f.npz") as arrays:
            assert [Path(path).name for path in arrays["paths"]] == ["a.mp4", "c.mp4"]
            np.testing.assert_array_equal(arrays["features"][:13], arrays["features"][13:])

    def test_frames_a_second_give_the_window(self, exported: Path, tmp_path: Path, long_video: Path) -> None:
        header, _ = self.run(exported, tmp_path, long_video, fps=5.0)  # 20 frames a clip
        assert header["windows"] == {"window_s": 4.0, "stride_s": 1.0, "smooth": 3, "min_segment_s": 2.0}

    def test_below_the_least_score_the_label_is_unknown(
        self, exported: Path, tmp_path: Path, long_video: Path, videos: Path
    ) -> None:
        inputs = [long_video, next(videos.rglob("*.mp4"))]
        (_, *before) = self.run(exported, tmp_path, *inputs, window_s=4.0, restart=True)
        (header, *rows) = self.run(exported, tmp_path, *inputs, window_s=4.0, restart=True, min_score=1.0)
        assert header["min_score"] == 1.0
        assert [row["label"] for row in rows] == ["unknown", "unknown"]
        assert {row["path"]: row["top"] for row in rows} == {row["path"]: row["top"] for row in before}
        assert {segment[2] for row in rows for segment in row["segments"]} == {"unknown"}

    def test_windows_that_are_too_many_are_an_error_of_that_video(
        self, exported: Path, tmp_path: Path, long_video: Path
    ) -> None:
        (_, row) = self.run(exported, tmp_path, long_video, window_s=4.0, stride_s=1e-4)
        assert row["error"]["code"] == "too_large"
        assert "take a longer stride" in row["error"]["message"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"window_s": 2.0, "stride_s": 3.0}, "window 2s with stride 3s: allowed are 0 < stride <= window"),
            ({"stride_s": 1.0}, "--stride is between windows: give --window or --fps too"),
            ({"window_s": 2.0, "fps": 3.0}, "name one"),
            ({"fps": 0.0}, "--fps 0: allowed are values above 0"),
            ({"window_s": 2.0, "smooth": 2}, "allowed are odd numbers up to 100,000, 1 for none"),
            ({"min_score": 1.5}, "--min-score 1.5: allowed are 0 to 1"),
        ],
    )
    def test_bad_windows_are_told_before_any_work(self, tmp_path: Path, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            self.run(Path("no_bundle_is_read"), tmp_path, **options)
