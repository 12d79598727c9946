"""Public data sets in exactly the layouts that they are published in, of real videos in their real codecs."""

import errno
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from harec_deploy.errors import UsageError
from tests.media import cut, make_video
from training.datasets import Sample, inspect, read_manifest
from training.datasets.layouts import LAYOUTS, scan
from training.splits import split, subset


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A video of each kind that the data sets use: Xvid in AVI, MPEG-1, H.264 in MP4."""
    folder = tmp_path_factory.mktemp("one")
    return {
        ".avi": make_video(folder / "v.avi", codec="mpeg4", frames=20),
        ".mpg": make_video(folder / "v.mpg", codec="mpeg1video", frames=20),
        ".mp4": make_video(folder / "v.mp4", frames=20),
    }


def put(one: dict[str, Path], *paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one[path.suffix], path)


def ucf(one: dict[str, Path], root: Path, classes: list[str], groups: int, clips: int = 2) -> None:
    for label in classes:
        names = [f"v_{label}_g{g:02d}_c{c:02d}.avi" for g in range(1, groups + 1) for c in range(1, clips + 1)]
        put(one, *(root / label / name for name in names))


@pytest.fixture
def ucf101(tmp_path: Path, one: dict[str, Path]) -> Path:
    """UCF-101: two archives unpacked side by side; split 1 tests groups 1 to 7, split 2 groups 8 to 14."""
    root, classes = tmp_path / "ucf", ["ApplyEyeMakeup", "YoYo"]
    ucf(one, root / "UCF-101", classes, groups=15, clips=1)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{n} {name}\r\n" for n, name in enumerate(classes, 1)))
    for number, tested in ((1, range(1, 8)), (2, range(8, 15))):
        names = [(g, n, f"{c}/v_{c}_g{g:02d}_c01.avi") for n, c in enumerate(classes, 1) for g in range(1, 16)]
        (lists / f"testlist{number:02d}.txt").write_text("".join(f"{p}\n" for g, _, p in names if g in tested))
        train = "".join(f"{p} {n}\n" for g, n, p in names if g not in tested)
        (lists / f"trainlist{number:02d}.txt").write_text(train)
    return root


def groups_of(samples: list[Sample], side: str) -> set[int]:
    return {int(sample.group) for sample in samples if sample.split == side}


class TestUCF101:
    @pytest.mark.parametrize(("number", "tested"), [(1, set(range(1, 8))), (2, set(range(8, 15)))])
    def test_official_lists(self, ucf101: Path, number: int, tested: set[int]) -> None:
        found = scan(ucf101, official=number)
        assert found.layout == "ucf101"
        done, told = split(found.samples, (0.2, 0.1), seed=0)
        assert groups_of(done, "test") == tested
        assert groups_of(done, "val") & groups_of(done, "train") == set()
        assert len(groups_of(done, "val")) == 2
        assert len(done) == 30
        assert told.startswith("official split, test 14 videos; val is taken from train: split by group")

    def test_without_a_number_it_is_split_by_group(self, ucf101: Path) -> None:
        found = scan(ucf101)
        assert {sample.split for sample in found.samples} == {""}
        assert groups_of(split(found.samples, (0.1, 0.1), 0)[0], "train")

    def test_what_is_wrong_is_told(self, ucf101: Path) -> None:
        with pytest.raises(UsageError, match=r"--official 4: .* is a ucf101 data set, which has splits 1 to 3"):
            scan(ucf101, official=4)
        with pytest.raises(UsageError, match=r"testlist03\.txt cannot be read .*copy the official lists again"):
            scan(ucf101, official=3)
        (ucf101 / "ucfTrainTestlist/classInd.txt").write_text("1 YoYo\n")
        with pytest.raises(UsageError, match="does not name the class ApplyEyeMakeup"):
            scan(ucf101, official=1)

    def test_a_video_that_is_on_no_list_is_told(self, ucf101: Path) -> None:
        lists = ucf101 / "ucfTrainTestlist/testlist01.txt"
        lists.write_text(lists.read_text().replace("YoYo/v_YoYo_g01_c01.avi\n", ""))
        found = scan(ucf101, official=1)
        ((sample, why),) = found.left_out
        assert (sample.path.name, sample.label) == ("v_YoYo_g01_c01.avi", "YoYo")
        assert why == "the official split has it on neither side"
        assert len(found.samples) == 29

    def test_a_folder_that_cannot_be_read(self, ucf101: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (ucf101 / "UCF-101/closed").mkdir()
        listing = os.listdir, os.scandir
        for name, function in zip(("listdir", "scandir"), listing, strict=True):

            def closed(folder: str, function: Callable[[str], object] = function) -> object:
                if Path(folder).name == "closed":
                    raise PermissionError(errno.EACCES, "Permission denied")
                return function(folder)

            monkeypatch.setattr(f"os.{name}", closed)
        ((sample, why),) = scan(ucf101, "ucf50").left_out
        assert (sample.path.name, why) == ("closed", "unreadable: Permission denied")

    def test_lists_of_other_videos(self, ucf101: Path) -> None:
        for path in (ucf101 / "ucfTrainTestlist").glob("t*list01.txt"):
            path.write_text("Elsewhere/v_Elsewhere_g01_c01.avi 1\n")
        with pytest.raises(UsageError, match="the official lists name 0 of the 30 videos"):
            scan(ucf101, official=1)


def test_ucf50(tmp_path: Path, one: dict[str, Path]) -> None:
    ucf(one, tmp_path / "UCF50", ["BaseballPitch", "Biking"], groups=3)
    found = scan(tmp_path)
    assert (found.layout, len(found.samples)) == ("ucf50", 12)
    assert found.told == "layout ucf50, recognised by what is there (UCF-50: <Class>/v_<Class>_g01_c01.avi)"
    assert scan(tmp_path, "ucf50").told == ""
    assert Counter(sample.group for sample in found.samples) == {"01": 4, "02": 4, "03": 4}
    with pytest.raises(UsageError, match="is a ucf50 data set, which has no official splits; expected UCF-101 with"):
        scan(tmp_path, official=1)


def test_ucf11(tmp_path: Path, one: dict[str, Path]) -> None:
    for label, short in (("basketball", "shooting"), ("biking", "biking"), ("diving", "diving")):
        folder = tmp_path / "UCF11_updated_mpg" / label
        (folder / "Annotation").mkdir(parents=True)
        (folder / "Annotation/v_notes.xgtf").write_text("<viper/>")
        put(one, *(folder / f"v_{short}_{g:02d}/v_{short}_{g:02d}_{c:02d}.mpg" for g in (1, 2) for c in (1, 2, 3)))
    found = scan(tmp_path)
    assert found.layout == "ucf11"
    assert Counter((s.label, s.group) for s in found.samples) == {
        (label, group): 3 for label in ("basketball", "biking", "diving") for group in ("01", "02")
    }
    readable, problems = inspect(found.samples)
    assert not problems
    assert {sample.codec for sample in readable} == {"mpeg1video"}


HMDB = {  # name: its number in split 1
    "April_09_brush_hair_u_nm_np1_ba_goo_0.avi": 2,
    "April_09_brush_hair_u_nm_np1_ba_goo_1.avi": 2,
    "Brushing_my_hair_brush_hair_h_cm_np1_fr_med_0.avi": 1,
    "atheismisrad_brush_hair_u_nm_np1_fr_med_3.avi": 0,
}


@pytest.fixture
def hmdb51(tmp_path: Path, one: dict[str, Path]) -> Path:
    """HMDB-51 with its lists in the folder that their archive unpacks to."""
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    for label in ("brush_hair", "wave"):
        rows = {name.replace("brush_hair", label): number for name, number in HMDB.items()}
        put(one, *(tmp_path / "hmdb51_org" / label / name for name in rows))
        text = "".join(f"{name} {number} \n" for name, number in rows.items())
        (lists / f"{label}_test_split1.txt").write_text(text)
    return tmp_path


def test_hmdb51(hmdb51: Path) -> None:
    found = scan(hmdb51, official=1)
    assert found.layout == "hmdb51"
    assert Counter((s.label, s.split) for s in found.samples) == {
        (label, side): count for label in ("brush_hair", "wave") for side, count in (("test", 2), ("train", 1))
    }
    assert {s.group for s in found.samples if s.split == "test"} == {"April_09"}
    assert [why for _, why in found.left_out] == ["the official split has it on neither side"] * 2
    assert len(scan(hmdb51).samples) == 8
    assert scan(hmdb51).left_out == []
    with pytest.raises(UsageError, match=r"brush_hair_test_split2\.txt cannot be read"):
        scan(hmdb51, official=2)


def test_kinetics(tmp_path: Path, one: dict[str, Path]) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    train = "abseiling,-abc,10,20,train,0\nzumba,def_,0,10,train,0\nzumba,gone,0,10,train,0\n"
    (tmp_path / "train.csv").write_text(header + train)
    (tmp_path / "validate.csv").write_text(header + 'abseiling,ghi,5,15,validate,0\n"zumba",jkl,7.0,17.0,validate,0\n')
    (tmp_path / "x.csv").write_text(header + "zumba,def_,0,10,test,0\n")
    put(one, tmp_path / "train/abseiling/-abc_000010_000020.mp4", tmp_path / "train/zumba/def__000000_000010.mp4")
    put(one, tmp_path / "val/abseiling/ghi.mp4", tmp_path / "val/zumba/jkl_000007_000017.mp4")
    put(one, tmp_path / "val/zumba/extra.mp4")
    found = scan(tmp_path)
    assert found.layout == "kinetics"
    assert {(s.label, s.group, s.split) for s in found.samples} == {
        ("abseiling", "-abc", "train"),
        ("zumba", "def_", "train"),
        ("abseiling", "ghi", "val"),
        ("zumba", "jkl", "val"),
    }
    assert {(s.path.relative_to(tmp_path).as_posix(), s.label): why for s, why in found.left_out} == {
        ("gone_000000_000010.mp4", "zumba"): "train.csv names it, and no such video is here",
        ("val/zumba/extra.mp4", ""): "no CSV file names it",
        ("train/zumba/def__000000_000010.mp4", "zumba"): "x.csv names it again: the first line counts",
    }
    (tmp_path / "train.csv").write_text(header + "abseiling,-abc,ten,20,train,0\n")
    with pytest.raises(UsageError, match="-abc: time_start and time_end are 'ten' and '20'"):
        scan(tmp_path)


def test_folders(tmp_path: Path, one: dict[str, Path]) -> None:
    put(one, tmp_path / "jump/a/1.mp4", tmp_path / "jump/2.avi", tmp_path / "run/3.mpg")
    found = scan(tmp_path)
    assert (found.layout, len(found.samples)) == ("folders", 3)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "folders"])
def test_a_layout_that_is_not_there(tmp_path: Path, one: dict[str, Path], layout: str) -> None:
    put(one, tmp_path / "jump/1.mp4", tmp_path / "run/2.mp4")
    with pytest.raises(UsageError) as raised:
        scan(tmp_path, layout)
    assert f"expected {LAYOUTS[layout].expected}; there is jump/, run/" in str(raised.value)


def test_names_that_are_not_allowed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown layout 'coco'; allowed are auto, ucf101"):
        scan(tmp_path, "coco")
    with pytest.raises(UsageError, match="no such folder; expected a data set such as a folder for each class"):
        scan(tmp_path / "gone")


def samples(classes: int = 4, groups: int = 10, clips: int = 3) -> list[Sample]:
    """Groups of one class each, as the videos that a clip was cut from are."""
    return [
        Sample(Path(f"/v/{label}/{group}_{clip}.mp4"), f"class{label}", f"{label}-{group}")
        for label in range(classes)
        for group in range(groups)
        for clip in range(clips)
    ]


class TestSplit:
    @pytest.mark.parametrize("seed", range(5))
    def test_groups_of_one_class_are_split_in_proportion(self, seed: int) -> None:
        done, told = split(samples(), (0.1, 0.2), seed)
        assert Counter((s.label, s.split) for s in done) == {
            (f"class{label}", side): 3 * count
            for label in range(4)
            for side, count in (("train", 7), ("val", 1), ("test", 2))
        }
        assert len({(s.group, s.split) for s in done}) == 40
        assert told == (
            "split by group, no group on two sides, classes in proportion: train 28, val 4, test 8 of 40 groups"
        )

    def test_random_leaks_and_says_so(self) -> None:
        done, told = split(samples(), (0.1, 0.1), 0, "random")
        assert len({(s.group, s.split) for s in done}) > 40
        assert told.startswith("WARNING: the split is random although 40 groups are known: clips of one scene may")

    def test_what_cannot_be_split(self) -> None:
        with pytest.raises(UsageError, match="the videos carry no group"):
            split([Sample(Path("/a"), "a"), Sample(Path("/b"), "b")], (0.1, 0.1), 0, "group")
        with pytest.raises(UsageError, match="split by 'scene': allowed are auto, group and random"):
            split(samples(), (0.1, 0.1), 0, "scene")
        listed = [Sample(Path(f"/{side}"), "a", "g", side) for side in ("train", "val", "test")]
        with pytest.raises(UsageError, match="--split-by random: the official lists leave nothing to split"):
            split(listed, (0.1, 0.1), 0, "random")
        assert split(listed, (0.1, 0.1), 0)[0] == listed
        with pytest.raises(UsageError, match="2 groups are too few for test and val and train"):
            split(samples(classes=2, groups=1), (0.1, 0.1), 0)


class TestSubset:
    def test_names_and_numbers(self) -> None:
        assert {s.label for s in subset(samples(), "class3, class1", 0, 0)} == {"class1", "class3"}
        drawn = [frozenset(s.label for s in subset(samples(), "2", 0, seed)) for seed in range(20)]
        assert {len(labels) for labels in drawn} == {2}
        assert len(set(drawn)) > 1
        assert subset(samples(), "2", 0, 3) == subset(samples(), "2", 0, 3)
        assert len(subset(samples(), "", 5, 0)) == 20
        assert subset(samples(), "", 0, 0) == samples()

    @pytest.mark.parametrize(
        ("classes", "message"),
        [("5", "allowed are 2 to 4"), ("1", "allowed are 2"), ("class9,class1", "no class class9"), ("class1", "two")],
    )
    def test_what_is_not_there(self, classes: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            subset(samples(), classes, 0, 0)


class TestPrepare:
    def prepare(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "training", "prepare", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=False
        )

    def test_all_lands_in_the_manifest(self, ucf101: Path) -> None:
        (ucf101 / "UCF-101/YoYo/v_YoYo_g15_c01.avi").write_bytes(b"RIFF no video")
        done = self.prepare(str(ucf101), "--official", "1", "--per-class", "14", "--val", "0.2")
        assert done.returncode == 0, done.stderr
        assert "ucf101: 2" in done.stderr
        assert (
            "layout ucf101, recognised by what is there (UCF-101 with ucfTrainTestlist/classInd.txt); --l"
            in done.stderr
        )
        text = (ucf101 / "manifest.csv").read_text().splitlines()
        assert text[0] == f"# python -m training prepare {ucf101} --official 1 --per-class 14 --val 0.2"
        manifest = read_manifest(ucf101 / "manifest.csv")
        assert {(s.frames, s.fps, s.duration_s, s.codec) for s in manifest.samples} == {(20, 25.0, 0.8, "mpeg4")}
        assert {s.split for s in manifest.samples} == {"train", "val", "test"}
        chosen = {"layout": "ucf101", "official": 1, "split_by": "auto", "classes": "", "per_class": 14, "seed": 0}
        assert manifest.data.items() >= chosen.items()

    def test_what_is_left_out_is_told_and_listed(self, tmp_path: Path, one: dict[str, Path]) -> None:
        put(one, *(tmp_path / f"{label}/{n}.mp4" for label in ("jump", "run", "walk") for n in range(4)))
        for label in ("jump", "walk"):
            for n in range(15):
                (tmp_path / label / f"link{n:02d}.mp4").symlink_to(tmp_path / "run/0.mp4")
        done = self.prepare(str(tmp_path), "--split-by", "random", "--test", "0.3")
        assert done.stderr.count("it is a link, and links are not followed") == 20
        assert f"left out: 10 more; all are listed in {tmp_path}/manifest.csv" in done.stderr
        text = (tmp_path / "manifest.csv").read_text()
        assert text.count("# left out: ") == 30
        assert "# left out: walk/link14.mp4: it is a link, and links are not followed\n" in text
        done = self.prepare(str(tmp_path), "--split-by", "random", "--test", "0.3", "--classes", "run,jump")
        assert (tmp_path / "manifest.csv").read_text().count("# left out: ") == 15

    def test_check_finds_what_a_first_look_does_not(self, tmp_path: Path, one: dict[str, Path]) -> None:
        put(one, *(tmp_path / f"d/{label}/{n}.mp4" for label in ("jump", "run") for n in range(6)))
        (tmp_path / "d/jump/0.mp4").unlink()
        make_video(tmp_path / "d/jump/0.avi", codec="mpeg4", frames=60)
        cut(tmp_path / "d/jump/0.avi", 0.6)
        assert self.prepare(str(tmp_path / "d")).returncode == 0
        assert len(read_manifest(tmp_path / "d/manifest.csv").samples) == 12
        done = self.prepare(str(tmp_path / "d"), "--check")
        assert done.returncode == 0, done.stderr
        assert "left out: " in done.stderr
        lines = (tmp_path / "d/manifest.csv").read_text().splitlines()
        assert lines[1].startswith("# left out: jump/0.avi: corrupt: ")
        assert len(read_manifest(tmp_path / "d/manifest.csv").samples) == 11
