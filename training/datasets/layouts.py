"""The layouts that public data sets come in, told apart by what is in the folder.

ucf101    UCF-101/<Class>/v_<Class>_g01_c01.avi and ucfTrainTestlist/{classInd,trainlist01..03,testlist01..03}.txt
          (Soomro, Zamir, Shah 2012). Its lists hold out groups 1 to 7, 8 to 14 and 15 to 21.
ucf50     <Class>/v_<Class>_g01_c01.avi, 25 groups of a class (Reddy, Shah 2012)
ucf11     <class>/v_<class>_01/v_<class>_01_01.mpg: a folder for each group (Liu, Luo, Shah 2009)
hmdb51    <class>/<source video>_<class>_....avi and <class>_test_split1..3.txt with 1 train, 2 test, 0 neither
          (Kuehne et al. 2011)
kinetics  a CSV with label, youtube_id, time_start, time_end and split, and <id>_<start>_<end>.mp4 (Kay et al. 2017)
folders   <class>/**/<video>: anybody's own
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from harec_deploy.errors import UsageError
from training.datasets import LeftOut, Sample, grouped, is_video, walk

UCF11_GROUP = re.compile(r"v_.+_(\d+)")
KINETICS_COLUMNS = {"label", "youtube_id", "time_start", "time_end", "split"}
_KINETICS_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}


class Layout(NamedTuple):
    """A layout: its name, what it needs to be one in words, what finds that, and what reads it.

    find: root -> the place of what tells it apart, or None. read: (root, that place, official split) -> samples, and
        what is passed over.
    """

    name: str
    expected: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path, Path, int | None], tuple[list[Sample], LeftOut]]
    official: int = 0


class DataSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which videos, and how they are split; see ``python -m training prepare``."""

    layout: str = "auto"
    official: int | None = None
    split_by: str = "auto"
    classes: str = ""
    per_class: int = 0
    val: float = 0.1
    test: float = 0.1


@dataclass(frozen=True, slots=True)
class Found:
    """A data set on disk: its layout, and its samples, with their split where an official list was asked for.

    told: how the layout was told, in one line; "" where it was named.
    left_out: what is there, or in a list, and not among the samples; the label is "" where it is unknown.
    """

    layout: str
    samples: list[Sample]
    left_out: LeftOut
    told: str


def scan(root: Path, layout: str = "auto", *, official: int | None = None, group_regex: str = "") -> Found:
    """Find the videos of a data set, their classes and groups, and its official split if ``official`` names one.

    Raises:
        UsageError: no such layout or folder, or it is not there; what was expected and what is there is told.
    """
    if layout not in ("auto", *LAYOUTS):
        raise UsageError(f"unknown layout {layout!r}; allowed are auto, {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; expected a data set such as {LAYOUTS['folders'].expected}")
    tried = LAYOUTS.values() if layout == "auto" else [LAYOUTS[layout]]
    for each in tried:
        place = each.find(root)
        if place is None:
            continue
        told = f"layout {each.name}, recognised by what is there ({each.expected})" if layout == "auto" else ""
        if official is not None and not 1 <= official <= each.official:
            have = f"splits 1 to {each.official}" if each.official else "no official splits"
            lacking = "" if each.official else f"; {_official_layouts()}"
            raise UsageError(f"--official {official}: {root} is a {each.name} data set, which has {have}{lacking}")
        samples, left_out = each.read(root, place, official)
        if group_regex:
            samples = grouped(samples, group_regex)
        return Found(each.name, samples, left_out, told)
    raise UsageError(f"{root}: expected {' or '.join(each.expected for each in tried)}; there is {_there(root)}")


def _official_layouts() -> str:
    return f"expected {' or '.join(layout.expected for layout in LAYOUTS.values() if layout.official)}"


def _there(root: Path) -> str:
    """Say in a few words what a folder holds."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) + more) or "nothing"


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing of one that cannot be read, which ``walk`` tells of."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _class_root(root: Path) -> Path:
    """Return the folder that holds the class folders: ``root``, or the one folder in it that does."""
    for place in (root, *(path for path in _entries(root) if path.is_dir())):
        folders = [path for path in _entries(place) if path.is_dir()]
        if sum(any(map(is_video, _entries(folder))) for folder in folders) >= 2:
            return place
    return root


def _find_ucf101(root: Path) -> Path | None:
    return next((path.parent for path in sorted(root.rglob("classInd.txt"))), None)


def _read_ucf101(root: Path, lists: Path, official: int | None) -> tuple[list[Sample], LeftOut]:
    samples, left_out = _read_folders(root, root, None)
    named = [line.split()[-1] for line in _lines(lists / "classInd.txt")]
    if strange := sorted({sample.label for sample in samples} - set(named)):
        raise UsageError(f"{lists / 'classInd.txt'} does not name the class {strange[0]}, which has a folder")
    if official is None:
        return samples, left_out
    sides = {}
    for side in ("test", "train"):
        for line in _lines(lists / f"{side}list{official:02d}.txt"):
            sides[line.split()[0]] = side
    places = {sample.path: sides.get(f"{sample.label}/{sample.path.name}", "") for sample in samples}
    return _sided(samples, places, left_out)


def _find_ucf50(root: Path) -> Path | None:
    place = _class_root(root)
    first = next((path for path in sorted(place.glob("*/*")) if is_video(path)), None)
    return place if first and re.fullmatch(r"v_.+_g\d+_c\d+\.\w+", first.name) else None


def _read_folders(root: Path, _: Path, __: int | None) -> tuple[list[Sample], LeftOut]:
    samples, left_out = walk(_class_root(root))
    return grouped(samples, ""), left_out


def _find_ucf11(root: Path) -> Path | None:
    for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        if any(UCF11_GROUP.fullmatch(path.name) and path.is_dir() for path in place.glob("*/*")):
            return place
    return None


def _read_ucf11(_: Path, place: Path, __: int | None) -> tuple[list[Sample], LeftOut]:
    samples = []
    found, left_out = walk(place)
    for sample in found:
        group = UCF11_GROUP.fullmatch(sample.path.parent.name)
        if group is None:
            raise UsageError(f"{sample.path}: expected it in a folder such as v_{sample.label}_01")
        samples.append(replace(sample, group=group[1]))
    return samples, left_out


def _find_hmdb51(root: Path) -> Path | None:
    return next((path.parent for path in sorted(root.rglob("*_test_split1.txt"))), None)


def _read_hmdb51(root: Path, lists: Path, official: int | None) -> tuple[list[Sample], LeftOut]:
    found, left_out = _read_folders(root, root, None)
    samples = [replace(sample, group=_hmdb_source(sample)) for sample in found]
    if official is None:
        return samples, left_out
    sides = {}
    for label in sorted({sample.label for sample in samples}):
        for line in _lines(lists / f"{label}_test_split{official}.txt"):
            name, number = line.rsplit(maxsplit=1)
            sides[label, name] = {"1": "train", "2": "test"}.get(number, "")
    places = {sample.path: sides.get((sample.label, sample.path.name), "") for sample in samples}
    return _sided(samples, places, left_out)


def _hmdb_source(sample: Sample) -> str:
    """Return the film or user that a clip was cut from: what stands before its class."""
    return sample.path.name.rpartition(f"_{sample.label}_")[0] or sample.path.stem


def _find_kinetics(root: Path) -> Path | None:
    return root if _kinetics_lists(root) else None


def _kinetics_lists(root: Path) -> list[Path]:
    found = []
    for path in sorted((*root.glob("*.csv"), *root.glob("annotations/*.csv"))):
        with path.open(encoding="utf-8", errors="replace") as stream:
            if set(stream.readline().strip().split(",")) >= KINETICS_COLUMNS:
                found.append(path)
    return found


def _read_kinetics(root: Path, _: Path, __: int | None) -> tuple[list[Sample], LeftOut]:
    videos = [path.absolute() for path in sorted(root.rglob("*")) if is_video(path)]
    files = {path.stem: path for path in videos}
    samples, left_out = {}, []
    for table in _kinetics_lists(root):
        with table.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                name = _kinetics_name(row)
                side = _KINETICS_SPLITS.get(row["split"].strip().lower(), "")
                path = files.get(name) or files.get(row["youtube_id"])
                if path and path in samples:
                    twice = Sample(path, row["label"], row["youtube_id"], side)
                    left_out.append((twice, f"{table.name} names it again: the first line counts"))
                elif path:
                    samples[path] = Sample(path, row["label"], row["youtube_id"], side)
                else:
                    missing = Sample(root.absolute() / f"{name}.mp4", row["label"], row["youtube_id"], side)
                    left_out.append((missing, f"{table.name} names it, and no such video is here"))
    if len({sample.label for sample in samples.values()}) < 2:
        raise UsageError(
            f"{root}: {len(samples)} of the {len(videos)} videos are in its CSV files; expected names such as "
            "<youtube_id>_000010_000020.mp4 of at least 2 classes"
        )
    left_out += [(Sample(path, ""), "no CSV file names it") for path in videos if path not in samples]
    return list(samples.values()), left_out


def _kinetics_name(row: dict[str, str]) -> str:
    """Return the name, without a suffix, that the usual downloaders give to a row's video."""
    name = row["youtube_id"]
    try:
        start, end = float(row["time_start"] or 0), float(row["time_end"] or 0)
    except ValueError:
        raise UsageError(f"{name}: time_start and time_end are {row['time_start']!r} and {row['time_end']!r}") from None
    return f"{name}_{start:06.0f}_{end:06.0f}"


def _sided(samples: Sequence[Sample], sides: dict[Path, str], left_out: LeftOut) -> tuple[list[Sample], LeftOut]:
    """Return the samples that an official list puts on a side, and after what was left out before the others."""
    done = [replace(sample, split=sides[sample.path]) for sample in samples if sides[sample.path]]
    if {sample.split for sample in done} != {"train", "test"}:
        raise UsageError(f"the official lists name {len(done)} of the {len(samples)} videos that are here")
    others = [(sample, "the official split has it on neither side") for sample in samples if not sides[sample.path]]
    return done, left_out + others


def _lines(path: Path) -> Iterable[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): copy the official lists again") from None


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("ucf101", "UCF-101 with ucfTrainTestlist/classInd.txt", _find_ucf101, _read_ucf101, 3),
        Layout("hmdb51", "HMDB-51 with its <class>_test_split1.txt files", _find_hmdb51, _read_hmdb51, 3),
        Layout("kinetics", "a CSV with label, youtube_id, time_start, time_end, split", _find_kinetics, _read_kinetics),
        Layout("ucf11", "UCF-11: <class>/v_<class>_01/*.mpg", _find_ucf11, _read_ucf11),
        Layout("ucf50", "UCF-50: <Class>/v_<Class>_g01_c01.avi", _find_ucf50, _read_folders),
        Layout("folders", "a folder for each class with its videos inside", lambda root: root, _read_folders),
    )
}
