"""Accuracy and its tables, and that the exported model's journal gives the same."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from harec_deploy.errors import UsageError
from harec_deploy.label.run import Options, label
from tests.media import make_video
from training import plots
from training.datasets import Sample, scan_folders
from training.evaluate import Evaluation, Prediction, from_journal, predict, run_folders, summed_up, wilson, write


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


def test_views_average_shifted_and_mirrored_clips(exported: Path, videos: Path) -> None:
    samples = scan_folders(videos)[:2]
    one, six = (predict(exported, samples, views=n, progress=lambda done, total: None) for n in (1, 6))
    assert [p.score for p in one] != [p.score for p in six]
    with pytest.raises(UsageError, match="--test-views 7: allowed are 1 to 6"):
        predict(exported, samples, views=7, progress=lambda done, total: None)


def test_runs_are_found_with_their_folds(tmp_path: Path) -> None:
    for number in (0, 1, 10, 2):
        (tmp_path / f"run/fold-{number}/bundle").mkdir(parents=True)
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
