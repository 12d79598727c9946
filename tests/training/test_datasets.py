"""Manifests and splits: nothing lost, and no group on two sides."""

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from harec_deploy.errors import UsageError
from training.datasets import Manifest, Sample, inspect, read_manifest, scan_folders, walk, write_manifest
from training.splits import folds, split

LINE_ENDS = "\n\r\x0b\x0c\x1c\x85\u2028"  # to str.splitlines


def samples(groups: int = 10, per_group: int = 3, classes: tuple[str, ...] = ("a", "b")) -> list[Sample]:
    return [
        Sample(Path(f"/v/{label}/{label}_g{group:02d}_c{clip}.avi"), label, f"{group:02d}" if groups > 1 else "")
        for label in classes
        for group in range(groups)
        for clip in range(per_group)
    ]


class TestScan:
    def test_finds_classes_and_ucf_groups(self, videos: Path) -> None:
        found = scan_folders(videos)
        assert Manifest(tuple(found)).classes == ["climb", "jump", "swim"]
        assert Counter(sample.group for sample in found) == {"01": 3, "02": 3}

    def test_a_regex_names_the_groups(self, videos: Path) -> None:
        found = scan_folders(videos, r"v_(\w+)_g\d(\d)_")
        assert {sample.group for sample in found} == {
            f"{label}-{n}" for label in ("climb", "jump", "swim") for n in "12"
        }

    def test_a_regex_must_fit_every_name(self, videos: Path) -> None:
        with pytest.raises(UsageError, match=r"does not fit 3 names, e\.g\. v_climb_g02_c01\.avi"):
            scan_folders(videos, r"_(g01)_")
        with pytest.raises(UsageError, match="--group-regex '\\(': missing \\)"):
            scan_folders(videos, "(")

    def test_without_groups_in_the_names_there_are_none(self, tmp_path: Path) -> None:
        for name in ("a/1.mp4", "b/v_b_g01_c01.mp4"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).touch()
        assert {sample.group for sample in scan_folders(tmp_path)} == {""}

    def test_what_was_expected_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such folder; expected a folder for each class"):
            scan_folders(tmp_path / "gone")
        with pytest.raises(UsageError, match="0 videos in 0 folders; expected at least 2 folders with videos"):
            scan_folders(tmp_path)

    def test_what_is_passed_over_is_told(self, tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        root = tmp_path / "d"
        shutil.copytree(videos, root)
        real = next(videos.rglob("*.mp4"))
        (root / "stray.mp4").touch()
        (root / "jump/more").symlink_to(videos / "jump")
        (root / "jump/linked.mp4").symlink_to(real)
        (root / "jump/notes.txt").symlink_to(real)
        os.mkfifo(root / "swim/fifo.mp4")
        (root / "swim/closed").mkdir()
        scandir = os.scandir

        def closed(folder: str) -> object:  # as it is for all but root, who may run the tests
            if Path(folder).name == "closed":
                raise PermissionError(errno.EACCES, "Permission denied")
            return scandir(folder)

        monkeypatch.setattr("os.scandir", closed)
        found, left_out = walk(root)
        assert len(found) == 6
        assert {(sample.path.relative_to(root).as_posix(), sample.label): why for sample, why in left_out} == {
            ("stray.mp4", ""): "it is in no class's folder",
            ("jump/linked.mp4", "jump"): "it is a link, and links are not followed",
            ("jump/more", "jump"): "it is a link, and links are not followed",
            ("swim/fifo.mp4", "swim"): "not_regular: not a regular file (a FIFO, socket, device or broken link)",
            ("swim/closed", "swim"): "unreadable: Permission denied",
        }

    def test_a_tree_of_links_is_told(self, tmp_path: Path, videos: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "1.mp4").symlink_to(next(videos.rglob("*.mp4")))
        with pytest.raises(UsageError, match=r"0 videos in 2 folders; .*; left out: .*a/1\.mp4: it is a link"):
            scan_folders(tmp_path)

    def test_unreadable_videos_are_told_with_their_reason(self, tmp_path: Path, videos: Path) -> None:
        (tmp_path / "bad.mp4").write_text("no video")
        good = Sample(next(videos.rglob("*.mp4")), "a")
        readable, problems = inspect([good, Sample(tmp_path / "bad.mp4", "a")])
        assert [(s.path, s.frames, s.fps, s.duration_s, s.codec) for s in readable] == [
            (good.path, 30, 25, 1.2, "h264")
        ]
        assert {path.name: error.kind for path, error in problems.items()} == {"bad.mp4": "not_video"}


class TestManifest:
    def test_round_trip_from_anywhere(self, tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found, _ = split(scan_folders(videos), (0, 0.5), seed=0)
        path = tmp_path / "m.csv"
        write_manifest(path, found, "python -m training prepare x")
        monkeypatch.chdir("/")
        assert list(read_manifest(path).samples) == found
        assert path.read_text().startswith(
            "# python -m training prepare x\npath,label,split,group,frames,fps,duration_s,codec,width,height\n"
        )

    def test_odd_names_survive(self, tmp_path: Path) -> None:
        odd = [
            Sample(tmp_path / name, 'cl"ass,', "g", "train")
            for name in ("a,b.mp4", '"q".mp4', "\udcff.mp4", "=1.mp4", "#1.mp4", *(f"a{c}b.mp4" for c in LINE_ENDS))
        ]
        write_manifest(tmp_path / "m.csv", odd, f"prepare 'a{LINE_ENDS}b'")
        assert list(read_manifest(tmp_path / "m.csv").samples) == odd

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2\n", "expected path, label, split, group, frames"),
            ("path,label,split,group,frames,fps,duration_s,codec,width,height\n", "no samples"),
            (
                "path,label,split,group,frames,fps,duration_s,codec,width,height\na,b\n",
                "a row is damaged .*make it again",
            ),
            (
                "# data: {\npath,label,split,group,frames,fps,duration_s,codec,width,height\n",
                "a row is damaged .*make it again",
            ),
        ],
    )
    def test_another_file_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_manifest(tmp_path / "m.csv")


class TestSplit:
    @pytest.mark.parametrize("seed", range(5))
    def test_no_group_is_on_two_sides(self, seed: int) -> None:
        done, told = split(samples(), (0.2, 0.2), seed)
        sides = {(sample.group, sample.split) for sample in done}
        assert len(sides) == 10
        assert Counter(side for _, side in sides) == {"train": 6, "val": 2, "test": 2}
        assert told == "split by group, no group on two sides: train 6, val 2, test 2 of 10 groups"

    def test_without_groups_it_is_random_within_classes_and_says_so(self) -> None:
        done, told = split(samples(groups=1, per_group=20), (0.1, 0.2), 0)
        assert Counter((s.label, s.split) for s in done) == {
            (label, name): count for label in "ab" for name, count in (("train", 14), ("val", 2), ("test", 4))
        }
        assert told.startswith("WARNING: the file names carry no group")

    def test_the_seed_decides(self) -> None:
        assert split(samples(), (0.1, 0.1), 1) == split(samples(), (0.1, 0.1), 1)
        assert split(samples(), (0.1, 0.1), 1) != split(samples(), (0.1, 0.1), 2)

    @pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0, 1)])
    def test_shares_must_leave_something(self, shares: tuple[float, float]) -> None:
        with pytest.raises(UsageError, match="allowed are 0 to 1, together below 1"):
            split(samples(), shares, 0)

    def test_too_few_groups(self) -> None:
        with pytest.raises(UsageError, match="2 groups are too few for val and test beside training"):
            split(samples(groups=2), (0.1, 0.1), 0)


class TestFolds:
    def test_each_group_is_tested_once(self) -> None:
        done = folds(samples(groups=7), 3, seed=0)
        tested = [{s.group for s in fold if s.split == "test"} for fold in done]
        assert sorted(group for groups in tested for group in groups) == [f"{g:02d}" for g in range(7)]
        assert sorted(map(len, tested)) == [2, 2, 3]
        assert all(len(fold) == len(samples(groups=7)) for fold in done)

    @pytest.mark.parametrize("count", [1, 8])
    def test_between_two_and_the_number_of_groups(self, count: int) -> None:
        with pytest.raises(UsageError, match="allowed are 2 to the number of groups, 7"):
            folds(samples(groups=7), count, 0)
