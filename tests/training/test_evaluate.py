"""Accuracy and its tables, and that the exported model's journal gives the same."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.decode import choose
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.intervals import wilson
from harec_deploy.label.run import Options, label
from harec_deploy.sampling import whole
from tests.media import make_video
from training import plots
from training.__main__ import app
from training.datasets import Sample, scan_folders, write_manifest
from training.evaluate import from_journal, from_weights, predict, run_folders, views_of, write
from training.metrics import Evaluation, Prediction, mcnemar, summed_up
from training.page import write_page


def predictions(pairs: list[tuple[str, str]]) -> list[Prediction]:
    return [Prediction(Path(f"/v/{i}.mp4"), truth, label, 0.5) for i, (truth, label) in enumerate(pairs)]


@pytest.fixture
def known() -> Evaluation:
    """Three right of five: a is taken for b once, c for a once."""
    return summed_up(["a", "b", "c"], predictions([("a", "a"), ("a", "b"), ("b", "b"), ("c", "a"), ("c", "c")]))


def test_scores_by_class(known: Evaluation) -> None:
    assert known.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert known.accuracy == 0.6
    scores = {score.name: (score.precision, score.recall, score.f1, score.count) for score in known.by_class()}
    assert scores["a"] == (0.5, 0.5, 0.5, 2)
    assert scores["b"] == (0.5, 1.0, pytest.approx(2 / 3), 1)
    assert scores["c"] == (1.0, 0.5, pytest.approx(2 / 3), 2)


def test_a_class_never_seen_and_a_failed_video_count(known: Evaluation) -> None:
    evaluation = summed_up(["a", "b", "c"], predictions([("a", "a"), ("b", "(failed)")]))
    scores = {score.name: score for score in evaluation.by_class()}
    assert evaluation.accuracy == 0.5
    assert (scores["b"].recall, scores["c"].f1, scores["c"].count) == (0, 0, 0)


def test_averages_weigh_classes_or_videos(known: Evaluation) -> None:
    macro, weighted = known.macro(), known.weighted()
    assert macro.f1 == pytest.approx((0.5 + 2 / 3 + 2 / 3) / 3)
    assert weighted.f1 == pytest.approx((2 * 0.5 + 2 / 3 + 2 * 2 / 3) / 5)
    assert weighted.recall == pytest.approx(known.accuracy)
    assert (
        summed_up(["a", "b", "c"], predictions([("a", "a")])).macro().f1 == 1.0
    )  # classes without videos are left out


def test_most_confused_pairs_come_first() -> None:
    pairs = [("a", "b")] * 5 + [("b", "a")] + [("c", "a")] * 2 + [("a", "a")] * 5
    first, second, third = summed_up(["a", "b", "c"], predictions(pairs)).most_confused()
    assert (first.truth, first.label, first.count, first.share, len(first.examples)) == ("a", "b", 5, 0.5, 3)
    assert [(pair.truth, pair.count, pair.share) for pair in (second, third)] == [("c", 2, 1.0), ("b", 1, 1.0)]


def test_top_5_needs_five_names() -> None:
    names = list("abcdefg")
    top = [("b", tuple("bacde")), ("b", tuple("bcdef")), ("a", tuple("abcde")), ("(failed)", ())]
    some = [Prediction(Path(), "a", label, 0.5, top=best) for label, best in top]
    assert summed_up(names, some).top_5 == 0.5
    some[0] = Prediction(Path(), "a", "a", 0.5, top=("a", "b"))
    assert summed_up(names, some).top_5 is None


def test_the_interval_draws_groups() -> None:
    """Ten groups that are all right or all wrong say as much as ten videos, however many clips they have."""
    clips = [(group, clip) for group in range(10) for clip in range(30)]
    some = [Prediction(Path(f"{g}_{c}"), "a", "a" if g < 7 else "b", 0.5, group=str(g)) for g, c in clips]
    grouped = summed_up(["a", "b"], some)
    alone = summed_up(["a", "b"], [Prediction(p.path, p.truth, p.label, 0.5) for p in some])
    assert next((g.name, g.correct, g.count) for g in grouped.by_group()) == ("7", 0, 30)
    low, high = grouped.interval() or (0, 0)
    assert low == pytest.approx(0.35, abs=0.051)
    assert high == pytest.approx(1.0, abs=0.051)
    low, high = alone.interval() or (0, 0)
    assert high - low == pytest.approx(2 * 1.96 * (0.7 * 0.3 / 300) ** 0.5, rel=0.1)
    assert grouped.interval() == grouped.interval()
    assert summed_up(["a", "b"], some[:150]).interval() is None  # five groups


def test_runs_that_label_the_same_videos_are_no_more_videos() -> None:
    """Three seeds that agree say of 40 videos what one says."""
    one = [Prediction(Path(f"{place}"), "a", "a" if place % 4 else "b", 0.5) for place in range(40)]
    alone, three = summed_up(["a", "b"], one), summed_up(["a", "b"], one * 3)
    assert three.wilson() == alone.wilson()
    assert three.interval() == alone.interval()


def test_an_unknown_label_is_judged_by_its_best_class() -> None:
    some = [Prediction(Path(f"{p}"), "a", "unknown" if p % 2 else "a", 0.9, top=("a", "b")) for p in range(10)]
    found = summed_up(["a", "b"], some)
    assert found.accuracy == 0.5
    told = found.reliability()
    assert told is not None
    assert told.ece == pytest.approx(0.1)


def test_mcnemars_exact_test() -> None:
    """Ten discordant videos, one of them for the first model: 2 * (1 + 10) / 2**10."""
    first = [True] * 5 + [True] + [False] * 9
    second = [True] * 5 + [False] + [True] * 9
    assert mcnemar(first, second) == (1, 9, pytest.approx(22 / 1024))
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_wilson_interval_of_known_shares() -> None:
    # Values of the formula's textbook examples, to four places.
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(97, 120) == pytest.approx((0.7290, 0.8688), abs=1e-3)


def test_tables_are_written(known: Evaluation, tmp_path: Path) -> None:
    write(known, tmp_path / "out")
    facts = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (facts["videos"], facts["correct"], facts["accuracy"]) == (5, 3, 0.6)
    with (tmp_path / "out/per_class.csv").open() as stream:
        assert [row["class"] for row in csv.DictReader(stream)] == ["a", "b", "c"]
    assert facts["macro"]["f1"] == pytest.approx(0.611, abs=1e-3)
    with (tmp_path / "out/confused.csv").open() as stream:
        assert [(row["truth"], row["label"], row["example_3"]) for row in csv.DictReader(stream)] == [
            ("a", "b", ""),
            ("c", "a", ""),
        ]
    with (tmp_path / "out/predictions.csv").open() as stream:
        assert [(row["truth"], row["label"]) for row in csv.DictReader(stream)][1] == ("a", "b")


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(UsageError, match="no videos in this split"):
        summed_up(["a", "b"], [])


def test_the_exported_models_journal_gives_pytorchs_labels(exported: Path, videos: Path, tmp_path: Path) -> None:
    samples = scan_folders(videos)
    reference = predict(exported, samples, progress=lambda done, total: None)
    label(exported, [str(videos)], Options(out=tmp_path / "o.jsonl", runner="openvino", precision="fp32"))
    journal = from_journal(tmp_path / "o.jsonl", [])
    assert {p.path: p.label for p in journal} == {p.path: p.label for p in reference}
    assert {p.path: p.truth for p in journal} == {p.path: p.truth for p in reference}
    scores = {p.path: p.score for p in reference}
    assert all(p.score == pytest.approx(scores[p.path], abs=1e-4) for p in journal)


def test_of_a_journal_of_everything_the_split_counts(exported: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    places = [shutil.copy(path, tmp_path / "in" / f"{n}.mp4") for n, path in enumerate(sorted(videos.rglob("*.mp4")))]
    samples = [Sample(place, "climb") for place in places[:2]]
    options = {"out": tmp_path / "o.jsonl", "runner": "openvino", "precision": "fp32"}
    label(exported, [str(place) for place in places[1:]], Options(**options))
    with pytest.raises(UsageError, match=r"o\.jsonl has 1 of the split's 2 videos, not .*0\.mp4: label the rest first"):
        from_journal(tmp_path / "o.jsonl", samples)
    label(exported, [str(tmp_path / "in")], Options(**options))
    os.utime(places[0], (0, 0))  # it changed, and is labelled again
    label(exported, [str(tmp_path / "in")], Options(**options))
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == len(places) + 2
    assert [(p.path, p.truth) for p in from_journal(tmp_path / "o.jsonl", samples)] == [
        (place, "climb") for place in places[:2]
    ]
    assert {p.truth for p in from_journal(tmp_path / "o.jsonl", [Sample(tmp_path / "other.mp4", "climb")])} == {"in"}


def test_an_exported_variant_gives_pytorchs_labels(exported: Path, videos: Path) -> None:
    samples = scan_folders(videos)
    reference = predict(exported, samples, progress=print)
    got = predict(exported, samples, runner="onnx", precision="fp32", progress=print)
    assert [p.top for p in got] == [p.top for p in reference]
    assert [p.score for p in got] == pytest.approx([p.score for p in reference], abs=1e-4)
    assert all(p.uncalibrated is None for p in got)
    assert all(p.uncalibrated for p in reference)


def test_views_average_shifted_and_mirrored_clips(exported: Path, videos: Path) -> None:
    samples = scan_folders(videos)[:2]
    one, six = (predict(exported, samples, views=n, progress=lambda done, total: None) for n in (1, 6))
    assert [p.score for p in one] != [p.score for p in six]
    with pytest.raises(UsageError, match="--test-views 7: allowed are 1 to 6"):
        predict(exported, samples, views=7, progress=lambda done, total: None)


@pytest.mark.parametrize("count", [2, 3])
def test_clips_average_what_lies_between_the_frames(exported: Path, videos: Path, count: int) -> None:
    """Each of N clips is every N-th frame of one clip with N times the frames."""
    samples = scan_folders(videos)[:3]
    bundle = load(exported)
    spec, classify = bundle.spec, from_weights(bundle).classify
    many = msgspec.structs.replace(spec.sampling, frames=count * spec.sampling.frames)
    for sample, got in zip(samples, predict(exported, samples, clips=count, progress=print), strict=True):
        frames = choose().frames(sample.path, lambda info: many.timestamps_s(whole(info.duration_s)[0]), spec.size)
        wanted = np.mean([classify(frames.pixels[start::count])[0] for start in range(count)], axis=0)
        assert got.label == spec.classes[wanted.argmax()]
        assert got.score == pytest.approx(wanted.max(), abs=1e-6)


def test_one_clip_is_the_one_that_is_labelled() -> None:
    assert views_of(1, 1, mirrored=True) == ((0.0, False),)
    assert sorted(shift for shift, _ in views_of(3, 1, mirrored=True)) == pytest.approx([-1 / 3, 0.0, 1 / 3])
    assert all(not mirror for _, mirror in views_of(1, 6, mirrored=False))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"clips": 0}, "--test-clips 0: allowed are 1 to 30"),
        ({"clips": 31}, "--test-clips 31: allowed are 1 to 30"),
        ({"clips": 2, "views": 2}, "--test-clips and --test-views both say"),
        ({"variant": "onnx-int9"}, "the bundle has no variant 'onnx-int9'; it has onnx-fp32"),
    ],
)
def test_what_cannot_be_measured(exported: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predict(exported, [], **how, progress=print)


def test_a_variant_or_precision_alone_means_the_exported_model(exported: Path, videos: Path) -> None:
    samples = scan_folders(videos)
    reference = predict(exported, samples, progress=print)
    for how in ({"variant": "onnx-fp32"}, {"precision": "fp32"}):
        got = predict(exported, samples, **how, progress=print)
        assert [p.label for p in got] == [p.label for p in reference]
        assert all(p.uncalibrated is None for p in got)  # which only the weights tell


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ([], "split test by the PyTorch weights"),
        (["--test-views", "2"], "split test by the PyTorch weights, 2 views of each clip"),
        (
            ["--variant", "onnx-fp32", "--runner", "onnx", "--test-clips", "2"],
            "split test by onnx-fp32 on onnx in fp32, 2 clips of each video",
        ),
    ],
)
def test_the_command_says_what_was_measured(
    options: list[str], measured: str, exported: Path, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "bundle").symlink_to(exported)
    write_manifest(tmp_path / "manifest.csv", [replace(s, split="test") for s in scan_folders(videos)[:2]], "test")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path), "-o", str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    assert f"right ({measured}); written to" in done.stderr
    assert json.loads((tmp_path / "out/metrics.json").read_text())["measured"] == measured
    assert f'<p class="soft">{measured}</p>' in (tmp_path / "out/evaluation.html").read_text()


def test_a_video_that_cannot_be_decoded_is_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"bad\.mp4: ") as caught:
        predict(exported, [Sample(tmp_path / "bad.mp4", "jump")], progress=print)
    assert caught.value.kind == "not_video"


def test_a_journal_takes_no_options_of_labelling(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    for option in (["--test-clips", "3"], ["--variant", "onnx-fp32"], ["--runner", "onnx"]):
        with pytest.raises(UsageError, match="--journal goes with one run, and without options"):
            command = ["evaluate", str(tmp_path), "--journal", "j.jsonl", *option]
            CliRunner().invoke(app, command, catch_exceptions=False)


def test_runs_are_found_with_their_folds(tmp_path: Path) -> None:
    for number in (0, 1, 10, 2):
        (tmp_path / f"run/fold-{number}/bundle").mkdir(parents=True)
    (tmp_path / "run/fold-old").mkdir()
    assert [run.name for run in run_folders([tmp_path / "run"])] == ["fold-0", "fold-1", "fold-2", "fold-10"]
    with pytest.raises(UsageError, match="no finished run; make it with python -m training fit"):
        run_folders([tmp_path])


class TestPictures:
    def size(self, path: Path) -> tuple[int, int]:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")

    def test_are_drawn(self, known: Evaluation, videos: Path, tmp_path: Path) -> None:
        plots.confusion(known, tmp_path / "confusion.png")
        history = [{"epoch": 1.0, "train_loss": 2.0, "train_accuracy": 0.1, "val_loss": 2.1, "val_accuracy": 0.1}] * 2
        plots.curves(history, tmp_path / "curves.png")
        shown = [Prediction(s.path, s.label, "jump", 0.4) for s in scan_folders(videos)]
        shown.append(Prediction(tmp_path / "gone.mp4", "jump", "jump", 0.4))
        plots.contact_sheet(shown, tmp_path / "sheet.png")
        assert all(min(self.size(path)) > 200 for path in tmp_path.glob("*.png"))
        many = [f"class {place:03d}" for place in range(101)]
        plots.confusion(summed_up(many, predictions(list(zip(many, many, strict=True)))), tmp_path / "many.png")
        assert 1500 < min(self.size(tmp_path / "many.png")) < 3000

    def test_the_page_holds_them(self, known: Evaluation, videos: Path, tmp_path: Path) -> None:
        plots.confusion(known, tmp_path / "confusion.png")
        shown = [Prediction(s.path, s.label, "<b>jump", 0.4, group=s.group) for s in scan_folders(videos)]
        shown.append(Prediction(tmp_path / "gone.mp4", "swim", "climb", 0.4))
        write_page(summed_up(["climb", "<b>jump", "swim"], shown), "a & b", tmp_path)
        page = (tmp_path / "evaluation.html").read_text()
        assert "<title>a &amp; b</title>" in page
        assert "climb taken for &lt;b&gt;jump: 2, 100% of the class" in page
        assert "<b>jump" not in page
        assert page.count("data:image/jpeg") == 6
        assert page.count("data:image/png") == 1
        assert "<figure>vanished" in page or "<figure>unreadable" in page

    def test_the_page_is_not_sure_of_what_is_all_right(self, tmp_path: Path) -> None:
        """Of groups that are all right, each draw of them is; Wilson's interval knows that there may be others."""
        right = [Prediction(tmp_path / f"{n}.mp4", "ab"[n % 2], "ab"[n % 2], 0.9, group=str(n)) for n in range(48)]
        write_page(summed_up(["a", "b"], right), "all", tmp_path)
        page = (tmp_path / "evaluation.html").read_text()
        assert "accuracy, 95 % between 92.6% and 100.0%" in page
        assert "comes from videos: groups are too few, or all alike." in page

    def test_a_sheet_shows_mistakes_first_and_is_spread_over_the_rest(self, tmp_path: Path) -> None:
        made = make_video(tmp_path / "v.mp4", frames=5)
        many = [Prediction(made, "a", "a", 1.0)] * 50 + [Prediction(made, "a", "b", 1.0)] * 3
        shown = plots._choice(many)
        assert len(shown) == plots.SHEET_VIDEOS
        assert [p.label for p in shown[:4]] == ["b", "b", "b", "a"]


def test_samples_have_no_truth_beyond_their_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such journal; make it with harec-deploy label"):
        from_journal(tmp_path / "none.jsonl", [Sample(tmp_path, "a")])
    assert np.isfinite(wilson(1, 1)).all()
