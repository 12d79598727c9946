"""harec-deploy bench: real runs with tiny budgets. What is checked is what was measured and told, never how fast."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harec_deploy.bench import output
from harec_deploy.bench.engine import Settings, latency, throughput
from harec_deploy.bench.measure import Budget
from harec_deploy.bench.result import Result
from harec_deploy.bench.videos import VideoSettings, decode, label
from harec_deploy.bench.ways import find_clips, find_ways
from harec_deploy.bundle import load
from harec_deploy.errors import MissingDependency, UsageError
from harec_deploy.label.options import Options
from harec_deploy.label.run import label as label_videos
from tests.media import make_video
from tests.test_bundle import edit
from tests.test_cli import run

QUICK = Budget(seconds=0.05, warm_up_s=0.001, turn_s=0.001)
ONNX, OPENVINO = "onnx-fp32 on onnx in fp32", "onnx-fp32 on openvino in fp32"


@pytest.fixture(scope="module")
def measured(exported: Path, videos: Path) -> dict[str, Result]:
    """One result of each kind but pick."""
    both, clips = [OPENVINO, ONNX], [str(videos)]
    return {
        "latency": latency(exported, Settings(compare=both, clips=clips, batches=(1, 3), streams=(1, 2), budget=QUICK)),
        "throughput": throughput(exported, Settings(compare=both, clips=clips, budget=QUICK)),
        "decode": decode(clips, exported, VideoSettings(budget=QUICK)),
        "label": label(exported, clips, VideoSettings(compare=both, workers=1, budget=QUICK)),
    }


def test_latency_has_a_row_for_each_way_batch_and_number_of_streams(measured: dict[str, Result]) -> None:
    rows = measured["latency"].rows
    cases = [(row["way"], row["batch"], row["streams"]) for row in rows]
    assert sorted(cases) == sorted((way, batch, s) for way in (ONNX, OPENVINO) for batch in (1, 3) for s in (1, 2))
    for row in rows:
        assert "gpu_ms" not in row
        if row["p50_ms_interval"]:
            low, high = row["p50_ms_interval"]
            assert low <= row["p50_ms"] <= high
        assert 0 < row["p50_ms"] <= (row["p90_ms"] or np.inf) <= (row["p99_ms"] or np.inf)
        assert row["clips_per_s"] == pytest.approx(row["batch"] * row["streams"] / row["mean_ms"] * 1e3)
        assert sum(row["histogram"]["calls"]) == row["calls"]
        assert row["calls"] % row["streams"] == 0
        if row["way"] == OPENVINO:
            assert row["times_first"] == 1


def test_labelled_clips_give_accuracy_beside_speed(
    measured: dict[str, Result], exported: Path, videos: Path, tmp_path: Path
) -> None:
    clips = find_clips(load(exported), [str(videos)], 100)
    assert sorted(filter(None, clips.truths)) == sorted(["climb", "jump", "swim"] * 2)
    out = tmp_path / "rows.jsonl"
    label_videos(exported, [str(videos)], Options(out=out, runner="openvino", precision="fp32"))
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    right = sum(row["label"] == Path(row["path"]).parent.name for row in rows)
    for kind in ("latency", "throughput", "label"):
        for row in measured[kind].rows:
            assert (row["accuracy"]["correct"], row["accuracy"]["clips"]) == (right, 6)
            low, high = row["accuracy"]["interval"]
            assert 0 <= low <= row["accuracy"]["accuracy"] == right / 6 <= high <= 1


def test_throughput_doubles_the_batch_until_nothing_is_gained(measured: dict[str, Result]) -> None:
    rows = measured["throughput"].rows
    for way in (ONNX, OPENVINO):
        own = [row for row in rows if row["way"] == way]
        assert [row["batch"] for row in own] == [1 << place for place in range(len(own))]
        assert len(own) >= 2
        assert own[0]["gain"] is None
        assert all(row["gain"] >= 0.03 for row in own[1:-1])
        assert own[-1]["gain"] < 0.03 or own[-1]["batch"] == 1024  # of which MAX_BATCH_BYTES hold no more
        assert [row["per_s"] for row in own if row["best"]] == [max(row["per_s"] for row in own)]


def test_decode_has_a_row_for_each_codec_and_size(measured: dict[str, Result]) -> None:
    rows = measured["decode"].rows
    assert {(row["decoder"], row["codec"], row["size"], row["videos"]) for row in rows} == {
        ("pyav", "h264", "160x120", 3),
        ("pyav", "mpeg4", "160x120", 3),
    }
    for row in rows:
        assert row["ms_a_video"] * row["per_s"] == pytest.approx(1e3)
        assert row["frames_per_s"] == pytest.approx(20 * row["per_s"])  # the bundle's clips have 20
    assert measured["decode"].about["clip"] == "20 frames of 64x64"


def test_a_decoder_is_measured_on_what_it_takes(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    make_video(tmp_path / "a.webm", codec="libvpx-vp9", frames=20)
    (tmp_path / "b.mp4").symlink_to(videos / "jump" / "v_jump_g01_c01.mp4")
    (tmp_path / "c.mp4").write_text("no video")
    inputs = [str(tmp_path / name) for name in ("a.webm", "b.mp4", "c.mp4")]
    result = decode(inputs, None, VideoSettings(device="cpu", budget=QUICK))
    assert [(row["decoder"], row["codec"]) for row in result.rows] == [
        ("pyav", "h264"),
        ("pyav", "vp9"),
        ("dali", "vp9"),
    ]
    assert "dali takes none of 1 videos in h264 of 160x120" in result.notes
    assert f"1 videos cannot be decoded, such as {tmp_path / 'c.mp4'} (not_video)" in result.notes


def test_label_splits_the_time_by_stage(measured: dict[str, Result]) -> None:
    assert [row["way"] for row in measured["label"].rows] == [OPENVINO, ONNX]
    for row in measured["label"].rows:
        assert (row["videos"], row["failed"], row["workers"]) == (6, 0, 1)
        assert set(row["stages_ms_a_video"]) == {"decode", "preprocess", "transfer", "engine", "write"}
        assert all(each > 0 for each in row["stages_ms_a_video"].values())
        assert row["bound_by"].startswith("bound by ")


def test_every_result_says_on_what_it_was_measured(measured: dict[str, Result]) -> None:
    for kind, result in measured.items():
        assert result.kind == kind
        facts = json.loads(output.as_json(result))
        assert {"harec-deploy", "openvino", "av", "numpy"} <= facts["machine"]["versions"].keys()
        assert facts["machine"]["cpu"]["cores_allowed"] >= 1
        assert facts["meanwhile"]["own_share"] >= 0
        assert facts["about"]["intervals"].startswith("95 % for the median of all calls")
        assert facts["rows"] == json.loads(json.dumps(result.rows))
        assert any("are not within 2.0%" in note for note in facts["notes"]) == any(
            not row["within"] or row["within"] > 0.02 for row in facts["rows"]
        )


def test_markdown_is_the_table_with_its_notes(measured: dict[str, Result]) -> None:
    for result in measured.values():
        lines = output.as_markdown(result).splitlines()
        table = [line for line in lines if line.startswith("|")]
        assert len(table) == 2 + len(result.rows)
        assert len({line.count("|") for line in table}) == 1
        assert [line.removeprefix("- ") for line in lines if line.startswith("- ")] == result.notes


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (99.97, "100"),
        (8.0, "8.00"),
        (0.02219, "0.0222"),
        (12.34, "12.3"),
        (999.6, "1000"),
        (123456.7, "123457"),
        (None, ""),
    ],
)
def test_figures_have_three_digits(value: float | None, told: str) -> None:
    assert output.figure(value) == told


@pytest.mark.parametrize("kind", ["latency", "throughput", "decode", "label"])
def test_pictures_are_drawn(measured: dict[str, Result], kind: str, tmp_path: Path) -> None:
    from matplotlib import image

    output.write(measured[kind], tmp_path / "picture.png")
    pixels = image.imread(tmp_path / "picture.png")
    assert pixels.shape[1] > 600
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


class TestWays:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["onnx"], {ONNX}),
            (["openvino:fp32"], {OPENVINO}),
            ([ONNX], {ONNX}),
            (["onnx:fp32", ONNX, "openvino:fp32"], {ONNX, OPENVINO}),
            (["torch", "onnx"], {"torch on torch in fp32", ONNX}),
        ],
    )
    def test_names(self, exported: Path, names: Sequence[str], expected: set[str]) -> None:
        assert {str(way) for way in find_ways(load(exported).spec, names, "auto")} == expected

    def test_a_variant_stands_for_all_its_ways_and_nothing_for_all(self, exported: Path) -> None:
        spec = load(exported).spec
        every = {str(way) for way in find_ways(spec, [], "auto")}
        assert every >= {ONNX, OPENVINO}
        assert {str(way) for way in find_ways(spec, ["onnx-fp32"], "auto")} == every

    @pytest.mark.parametrize("name", ["onnx-int8", "onnx-int8 on onnx in fp32", "caffe:fp32"])
    def test_a_name_that_fits_nothing_is_told_what_there_is(self, exported: Path, name: str) -> None:
        with pytest.raises(UsageError, match=r"no such way to run the bundle; there is .*onnx-fp32 on onnx in fp32"):
            find_ways(load(exported).spec, [name], "auto")


def test_without_videos_the_check_clips_are_taken_and_without_those_noise(bundle: Path) -> None:
    assert find_clips(load(bundle), [], 9).source == "the bundle's 2 check clips"
    edit(bundle, lambda spec: spec.update(check=None))
    clips = find_clips(load(bundle), [], 9)
    assert clips.source == "generated noise"
    assert clips.batch(7).shape == (7, 20, 64, 64, 3)
    assert not clips.truths


def test_the_command(exported: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.json", "a.md", "a.png")]
    outs: list[Any] = [word for file in files for word in ("-o", str(file))]
    done = run("bench", "latency", str(exported), "--compare", "onnx", "--seconds", "0.1", "--json", *outs)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(files[0].read_text())
    assert json.loads(done.stdout)["rows"][0]["way"] == ONNX
    assert files[1].read_text().startswith("### latency: lrcn, 20 frames of 64x64, the bundle's 2 check clips\n")
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert [f"written to {file}" in done.stderr for file in files] == [True] * 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["latency", "x", "-o", "a.txt"], "--out a.txt: the suffix gives the form; allowed are .json, .md, .png"),
        (["latency", "x", "-o", "no/a.md"], "--out no/a.md: there is no folder no"),
        (["latency", "x", "--batch", "1,x"], "--batch 1,x: allowed are whole numbers from 1 on, with commas"),
        (["latency", "x", "--within", "tight"], "--within tight: allowed are shares such as 2%"),
        (["latency", "x", "--within", "0.02"], "--within 0.02: allowed are shares such as 2%"),
        (["latency", "x", "--within", "0%"], "--within 0%: allowed are shares such as 2%"),
        (["throughput", "x", "--seconds", "0"], "--seconds 0: allowed are values above 0"),
        (["decode", "nowhere"], "nowhere: no such file or folder"),
        (["decode", ".", "--compare", "vlc"], "--compare vlc: no such decoder; there is pyav, dali"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], told: str) -> None:
    done = run("bench", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error [usage]: {told}")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_pictures_without_matplotlib_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"needs the package matplotlib: pip install 'harec-deploy\[train\]'"):
        output.check([tmp_path / "a.png"])
    output.check([tmp_path / "a.json"])
