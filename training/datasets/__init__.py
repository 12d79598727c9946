"""Data sets: labelled videos and their splits, written down in one manifest.

A manifest is a CSV file: path (relative to the manifest), label, group, split. Its first line is a comment with the
command that made it.
"""

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harec_deploy.decode import choose
from harec_deploy.discover import discover
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.files import atomic_write
from harec_deploy.label.workers import default_workers

SPLITS = ("train", "val", "test")
UCF_GROUP = r"_g(\d+)_c\d+"  # v_Biking_g01_c02.avi: group 1 was filmed in one place with the same people
COLUMNS = ("path", "label", "group", "split")


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled video: absolute path, class name, the group whose clips must stay together ("" if unknown)."""

    path: Path
    label: str
    group: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Labelled videos and, sorted by name, their classes."""

    samples: tuple[Sample, ...]

    @property
    def classes(self) -> list[str]:
        """All class names, sorted."""
        return sorted({sample.label for sample in self.samples})

    def only(self, split: str) -> "Manifest":
        """Return the samples of one split."""
        return Manifest(tuple(sample for sample in self.samples if sample.split == split))

    def labels(self, classes: Sequence[str]) -> list[int]:
        """Return each sample's class as its place in ``classes``."""
        places = {name: place for place, name in enumerate(classes)}
        return [places[sample.label] for sample in self.samples]


def scan_folders(root: Path, group_regex: str = "") -> list[Sample]:
    """Find the videos of a class-per-folder tree, ``root/<class>/**/<video>``, and their groups by file name.

    Raises:
        UsageError: no such tree; a regex that is damaged or fits some file names only.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; expected a folder for each class with its videos inside")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [
        Sample(Path(os.path.abspath(video.path)), folder.name)  # noqa: PTH100 - resolve would follow links
        for folder in folders
        for video in discover([str(folder)]).videos
        if video.error is None
    ]
    if len({sample.label for sample in found}) < 2:
        raise UsageError(
            f"{root}: {len(found)} videos in {len(folders)} folders; expected at least 2 folders with videos"
        )
    return _grouped(found, group_regex)


def unreadable(samples: Sequence[Sample]) -> dict[Path, VideoError]:
    """Return the videos that cannot be labelled or trained on, and why."""
    decoder = choose()

    def problem(sample: Sample) -> VideoError | None:
        try:
            decoder.probe(sample.path)
        except VideoError as error:
            return error
        return None

    with ThreadPoolExecutor(default_workers()) as pool:
        problems = pool.map(problem, samples)
        return {sample.path: error for sample, error in zip(samples, problems, strict=True) if error}


def _grouped(samples: list[Sample], group_regex: str) -> list[Sample]:
    try:
        pattern = re.compile(group_regex or UCF_GROUP)
    except re.error as error:
        raise UsageError(f"--group-regex {group_regex!r}: {error}") from None
    matches = [pattern.search(sample.path.name) for sample in samples]
    missing = [sample.path.name for sample, match in zip(samples, matches, strict=True) if not match]
    if group_regex and missing:
        raise UsageError(f"--group-regex {group_regex!r} does not fit {len(missing)} names, e.g. {missing[0]}")
    if missing:
        return samples
    return [
        Sample(sample.path, sample.label, "-".join(match.groups()) or match.group())
        for sample, match in zip(samples, matches, strict=True)
        if match
    ]


def write_manifest(path: Path, samples: Iterable[Sample], command: str) -> None:
    """Write a manifest with ``command`` in its first line."""
    text = io.StringIO(newline="")
    text.write(f"# {command}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sample in samples:
        writer.writerow([os.path.relpath(sample.path, path.parent), sample.label, sample.group, sample.split])
    with atomic_write(path) as stream:
        stream.write(os.fsencode(text.getvalue()))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        UsageError: the file is missing or is none.
    """
    try:
        lines = os.fsdecode(path.read_bytes()).splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); make it with python -m training prepare"
        ) from None
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    if tuple(rows.fieldnames or ()) != COLUMNS:
        raise UsageError(f"{path}: columns {rows.fieldnames}; expected {', '.join(COLUMNS)}")
    folder = path.absolute().parent
    samples = tuple(
        Sample(Path(os.path.normpath(folder / row["path"])), row["label"], row["group"], row["split"]) for row in rows
    )
    if not samples:
        raise UsageError(f"{path}: no samples")
    return Manifest(samples)
