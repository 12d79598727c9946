"""Runs side by side: the same videos, one way to run each, and differences that are more than chance."""

import csv
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.intervals import bootstrap
from harec_deploy.models import from_bundle
from harec_deploy.spec import HeadSpec
from tests.conftest import CLASSES, write_bundle
from training import compare as module
from training import plots
from training.__main__ import app
from training.compare import Result, compare, contenders, pairs
from training.costs import cost
from training.datasets import Sample, scan_folders, write_manifest
from training.evaluate import predict
from training.metrics import Prediction, holm, mcnemar, summed_up


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.001)


def run(folder: Path, bundle: Path, samples: list[Sample]) -> Path:
    shutil.copytree(bundle, folder / "bundle")
    write_manifest(folder / "manifest.csv", samples, "test")
    return folder


@pytest.fixture(scope="module")
def samples(exported: Path, videos: Path) -> list[Sample]:
    """Videos whose class is what the exported bundle says, so that it is right in all of them."""
    found = predict(exported, scan_folders(videos), progress=lambda done, total: None)
    return [Sample(p.path, p.label, p.group, "test") for p in found]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of other labels, not exported."""
    folder = tmp_path_factory.mktemp("other") / "bundle"
    write_bundle(folder)
    return folder


@pytest.fixture
def two(exported: Path, other: Path, samples: list[Sample], tmp_path: Path) -> list[Path]:
    return [run(tmp_path / "right", exported, samples), run(tmp_path / "other", other, samples)]


def result(name: str, hits: list[bool], groups: Sequence[str] = "") -> Result:
    labels = ["a" if hit else "b" for hit in hits]
    found = [
        Prediction(Path(f"/v/{place}.mp4"), "a", label, 0.9, group="".join(groups[place : place + 1]))
        for place, label in enumerate(labels)
    ]
    facts = cost("lrcn", HeadSpec(hidden=4), 2, frames=4, size=Size(width=64, height=64))
    return Result(name, "torch", summed_up(["a", "b"], found), facts, [2.0, 9.0, 3.0], 4000, 5000)


class TestCommand:
    def test_says_and_writes_what_was_measured(
        self, two: list[Path], samples: list[Sample], exported: Path, tmp_path: Path
    ) -> None:
        wrong = sum(p.label != p.truth for p in predict(two[1] / "bundle", samples, progress=lambda done, total: None))
        assert wrong > 0
        out = tmp_path / "out"
        done = CliRunner().invoke(app, ["compare", str(two[0] / "bundle"), str(two[1]), "-o", str(out)])
        assert done.exit_code == 0, done.output
        p = mcnemar([True] * 6, [True] * (6 - wrong) + [False] * wrong)[2]
        verdict = "is better than" if p < 0.05 else "is not shown to be better than"
        assert f"right {verdict} other: {wrong} videos only the first has right, 0 only the second" in done.output
        facts = json.loads((out / "comparison.json").read_text())
        right, second = facts["runs"]
        assert (facts["videos"], facts["groups"], facts["machine"]["cores"] > 0) == (6, 2, True)
        assert (right["correct"], second["correct"]) == (6, 6 - wrong)
        assert right["run_by"].startswith("onnx-fp32 on ")
        assert second["run_by"] == "torch on torch in fp32"
        spec = load(exported).spec
        assert right["parameters"] == sum(each.numel() for each in from_bundle(load(exported)).parameters())
        graphs = sum((exported / file.path).stat().st_size for file in spec.variants["onnx-fp32"].graphs.values())
        assert (right["weights_mb"], right["variant_mb"]) == (spec.weights.size / 1e6, graphs / 1e6)
        assert right["cpu_clips_per_s"] == np.median(right["cpu_clips_per_s_rounds"]) > 0
        with (out / "comparison.csv").open() as stream:
            rows = [(row["run"], row["correct"]) for row in csv.DictReader(stream)]
        assert rows == [("right", "6"), ("other", str(6 - wrong))]
        with (out / "pairs.csv").open() as stream:
            (pair,) = csv.DictReader(stream)
        assert (pair["first"], int(pair["only_first"]), float(pair["p"])) == ("right", wrong, p)
        assert (out / "speed_accuracy.png").read_bytes().startswith(b"\x89PNG")

    def test_folds_count_as_one_run(
        self, exported: Path, two: list[Path], samples: list[Sample], tmp_path: Path
    ) -> None:
        for number in (0, 1):
            run(tmp_path / f"folds/fold-{number}", exported, samples[number::2])
        every = contenders([tmp_path / "folds", two[0]], "test")
        done = compare(every, runner="onnx", precision="fp32", progress=lambda done, total: None)
        assert [(one.way, one.evaluation.accuracy) for one in done] == [("onnx-fp32 on onnx in fp32", 1.0)] * 2
        (pair,) = pairs(done)
        assert (pair.only_first, pair.only_second, pair.p) == (0, 0, 1.0)

    def test_folds_that_are_not_all_exported_run_by_pytorch(
        self, exported: Path, other: Path, two: list[Path], samples: list[Sample], tmp_path: Path
    ) -> None:
        run(tmp_path / "{folds}/fold-0", exported, samples[::2])
        run(tmp_path / "{folds}/fold-1", other, samples[1::2])
        done = compare(contenders([tmp_path / "{folds}", two[0]], "test"), progress=lambda done, total: None)
        assert done[0].way == "torch on torch in fp32"
        assert done[1].way.startswith("onnx-fp32 on ")
        assert "{folds}" in str(pairs(done)[0])

    def test_a_bundle_that_cannot_run_as_asked(self, two: list[Path]) -> None:
        every = contenders(two, "test")
        with pytest.raises(UsageError, match="the bundle has no variant 'onnx-int9'; it has onnx-fp32"):
            compare(every, variant="onnx-int9", progress=lambda done, total: None)


class TestRefusals:
    def test_splits_of_other_videos(self, two: list[Path], samples: list[Sample]) -> None:
        first = samples[0]
        write_manifest(two[1] / "manifest.csv", [replace(first, split="train"), *samples[1:]], "test")
        message = f"{first.path} is in split 'test' of right and not of other: compare what was tested on the same"
        for order in (two, two[::-1]):
            with pytest.raises(UsageError, match=message):
                contenders(order, "test")

    def test_other_classes(self, two: list[Path], samples: list[Sample]) -> None:
        last = samples[-1]
        elsewhere = next(name for name in CLASSES if name != last.label)
        write_manifest(two[1] / "manifest.csv", [*samples[:-1], replace(last, label=elsewhere)], "test")
        with pytest.raises(UsageError, match=f"of right as '{last.label}' and of other as '{elsewhere}'"):
            contenders(two, "test")

    def test_too_few(self, two: list[Path]) -> None:
        for named in (two[:1], [two[0], two[0] / "bundle"]):
            with pytest.raises(UsageError, match="compare takes two runs or more, each once"):
                contenders(named, "test")

    def test_no_such_split(self, two: list[Path]) -> None:
        with pytest.raises(UsageError, match="right: no videos in split 'val'"):
            contenders(two, "val")


class TestDifferences:
    def test_the_better_comes_first_and_three_pairs_are_corrected(self) -> None:
        """p of 10 to 0 is 2 / 2**10, of 9 to 0 is 2 / 2**9, of 1 to 0 is 1."""
        worst, better, best = [False] * 10 + [True] * 10, [True] * 9 + [False] + [True] * 10, [True] * 20
        found = pairs([result("worst", worst), result("best", best), result("better", better)])
        assert [(pair.first, pair.second, pair.only_first) for pair in found] == [
            ("best", "better", 1),
            ("best", "worst", 10),
            ("better", "worst", 9),
        ]
        assert [pair.p for pair in found] == [1.0, 2 / 2**10, 2 / 2**9]
        assert [pair.p_holm for pair in found] == [1.0, 6 / 2**10, 4 / 2**9]
        assert [pair.difference for pair in found] == pytest.approx([0.05, 0.5, 0.45])
        assert str(found[0]).startswith("best is not shown to be better than better: 1 videos only the first")
        assert "better is better than worst" in str(found[2])
        assert "(McNemar p 0.0039, with Holm's correction 0.0078); +45.0 points" in str(found[2])

    def test_what_is_significant_alone_need_not_be_among_many(self) -> None:
        """6 to 0: p is 2 / 2**6 = 0.03, and with three pairs three times as much."""
        hits = [True] * 6 + [False] * 6
        some = [result("a", [True] * 12), result("b", hits), result("c", hits)]
        first = pairs(some)[0]
        assert (first.p, first.p_holm) == (2 / 64, 6 / 64)
        assert "not shown" in str(first)
        assert "is better than" in str(pairs(some[:2])[0]).replace("not shown to be better than", "")

    def test_the_interval_draws_groups(self) -> None:
        """All that one has right more is in one of six groups: a draw has it not at all, or several times."""
        groups = "uuvvwwxxyyzz"
        first, second = result("a", [True] * 12, groups), result("b", [False] * 2 + [True] * 10, groups)
        (pair,) = pairs([first, second])
        assert pair.difference_low == 0.0
        assert pair.difference_high == pytest.approx(4 / 6)
        assert "95 % between +0.0 and +66.7" in str(pair)
        few = [result(name, hits, "xxxyyyzzzzzz") for name, hits in (("a", [True] * 12), ("b", [False] * 12))]
        (pair,) = pairs(few)
        assert pair.difference_low is pair.difference_high is None
        assert "+100.0 points, too few groups for an interval" in str(pair)

    def test_holms_correction(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.7, 0.6]) == [1.0, 1.0]
        assert holm([0.2]) == [0.2]

    def test_videos_without_a_group_are_drawn_alone(self) -> None:
        hits = [True, False] * 50
        alone, one = (result("a", hits, groups).evaluation for groups in ([""] * 100, ["one"] * 100))
        assert alone.interval() == one.interval()
        some = result("a", hits, ["x"] * 2 + ["y"] * 2 + [""] * 96).evaluation
        assert some.interval() == pytest.approx((0.4, 0.6), abs=0.03)

    @pytest.mark.parametrize("groups", [7, 20])
    def test_the_interval_holds_for_few_groups(self, groups: int) -> None:
        """Of 400 samples of groups that are right or wrong as a whole in part, about 95 % have the truth inside."""
        random = np.random.default_rng(0)
        inside = 0
        for _ in range(400):
            values = random.normal(0.6, 0.2, groups).repeat(5)
            low, high = bootstrap(values, [str(place // 5) for place in range(len(values))]) or (0, 0)
            inside += low <= 0.6 <= high
        assert 0.92 <= inside / 400 <= 0.98


class TestPicture:
    def test_names_stand_apart_and_inside(self) -> None:
        assert plots.spread([0.1, 0.5, 0.9], 0.1, 1.0) == [0.1, 0.5, 0.9]
        at = plots.spread([0.2, 0.94, 0.95, 0.95, 0.99], 0.05, 1.0)
        assert np.diff(at).min() >= 0.05 - 1e-9
        assert at[0] == 0.2
        assert at[-1] <= 1.0
        assert plots.spread([0.5, 0.5], 0.1, 1.0) == [0.5, 0.6]

    def test_grows_with_its_names(self, tmp_path: Path) -> None:
        for count in (2, 20):
            plots.speed_accuracy([result(f"run {n} $x", [True] * 3) for n in range(count)], tmp_path / f"{count}.png")
        heights = [int.from_bytes((tmp_path / f"{n}.png").read_bytes()[20:24], "big") for n in (2, 20)]
        assert heights[1] > 1.2 * heights[0]
        assert heights[1] >= 20 * 110 * plots.LABEL_INCHES
