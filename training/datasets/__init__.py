"""Data sets: labelled videos and their splits, written down in one manifest.

A manifest is a CSV file: path (relative to the manifest), label, split, group, and what the packets of the video say:
frames, fps, duration_s, codec, width, height. Its first line is a comment with the command that made it; a comment for
each video that was left out follows, and one with the settings that chose and split the videos, as JSON.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, dropwhile, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from harec_deploy.cli.console import printable
from harec_deploy.decode import Decoder, Size, choose
from harec_deploy.discover import SUFFIXES, discover
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.files import atomic_write
from harec_deploy.machine import cores

SPLITS = ("train", "val", "test")
UCF_GROUP = r"_g(\d+)_c\d+"  # v_Biking_g01_c02.avi: group 1 was filmed in one place with the same people
SETTINGS = "# data: "  # how the comment with the settings begins
COLUMNS = ("path", "label", "split", "group", "frames", "fps", "duration_s", "codec", "width", "height")


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled video: absolute path, class name, the group whose clips must stay together ("" if unknown).

    frames, fps, duration_s, codec, width, height: of its packets; 0 and "" where nobody looked; fps is 0 where there is
        no clock. Width and height are pixels as shown.
    """

    path: Path
    label: str
    group: str = ""
    split: str = ""
    frames: int = 0
    fps: float = 0.0
    duration_s: float = 0.0
    codec: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Labelled videos and, sorted by name, their classes; ``data``: by which settings they were chosen and split."""

    samples: tuple[Sample, ...]
    data: dict[str, Any] = field(default_factory=dict)

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


LeftOut = list[tuple[Sample, str]]  # what was found, or is named in a list, and is not taken; and why


def scan_folders(root: Path, group_regex: str = "") -> list[Sample]:
    """Find the videos of a class-per-folder tree, ``root/<class>/**/<video>``, and their groups by file name.

    Raises:
        UsageError: no such tree; a regex that is damaged or fits some file names only.
    """
    return grouped(walk(root)[0], group_regex)


def walk(root: Path) -> tuple[list[Sample], LeftOut]:
    """Find the videos of a class-per-folder tree, without groups, and what is passed over in it. Raises UsageError."""
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; expected a folder for each class with its videos inside")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found: list[Sample] = []
    left_out = [(Sample(path, ""), "it is in no class's folder") for path in sorted(root.iterdir()) if is_video(path)]
    for folder in folders:
        left_out += [(Sample(link, folder.name), "it is a link, and links are not followed") for link in _links(folder)]
        for video in discover([str(folder)]).videos:
            sample = Sample(Path(os.path.abspath(video.path)), folder.name)  # noqa: PTH100 - resolve would follow links
            if video.error is None:
                found.append(sample)
            else:
                left_out.append((sample, f"{video.error.kind}: {video.error}"))
    if len({sample.label for sample in found}) < 2:
        passed_over = f"; left out: {left_out[0][0].path}: {left_out[0][1]}" if left_out else ""
        raise UsageError(
            f"{root}: {len(found)} videos in {len(folders)} folders; expected at least 2 folders with videos"
            + passed_over
        )
    return found, left_out


def is_video(path: Path) -> bool:
    """Whether a file, or what a link leads to, is named like a video."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _links(folder: Path) -> list[Path]:
    """Return the links in a folder, and in those in it, that lead to videos or folders."""
    entries = sorted(Path(place, name) for place, *names in os.walk(folder) for name in chain(*names))
    return [path for path in entries if path.is_symlink() and (path.is_dir() or path.suffix.lower() in SUFFIXES)]


def inspect(
    samples: Sequence[Sample], *, whole: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[Sample], dict[Path, VideoError]]:
    """Return the samples with what their packets say, and the videos that cannot be trained on with the reason.

    whole: decode every frame too; damage that a first look does not show is a reason as well.
    """
    readable, problems = [], {}
    look = partial(_look, choose(), whole)
    with ThreadPoolExecutor(cores()) as pool:
        for done, (sample, found) in enumerate(zip(samples, pool.map(look, samples), strict=True), 1):
            progress(done, len(samples))
            if isinstance(found, VideoError):
                problems[sample.path] = found
            else:
                readable.append(found)
    return readable, problems


def _look(decoder: Decoder, whole: bool, sample: Sample) -> Sample | VideoError:
    try:
        info = decoder.probe(sample.path)
        if whole:
            every = partial(np.linspace, 0.0, info.duration_s, 2 * info.frames_found)
            for part in decoder.stream(sample.path, lambda _: every(), Size(width=8, height=8), 64):
                if part.bad_packets or not part.info.complete:
                    return VideoError("corrupt", f"{part.bad_packets} packets or frames are damaged, or some missing")
    except VideoError as error:
        return error
    return replace(
        sample,
        frames=info.frames_found,
        fps=round(info.fps or 0.0, 3),
        duration_s=round(info.duration_s, 3),
        codec=info.codec,
        width=info.width,
        height=info.height,
    )


def grouped(samples: list[Sample], group_regex: str) -> list[Sample]:
    """Return the samples with the groups that a regex finds in their names; UCF's without one, if all names have it.

    Raises:
        UsageError: a regex that is damaged or fits some file names only.
    """
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
        replace(sample, group="-".join(match.groups()) or match.group())
        for sample, match in zip(samples, matches, strict=True)
        if match
    ]


def write_manifest(
    path: Path,
    samples: Iterable[Sample],
    command: str,
    left_out: Mapping[Path, str] | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Write a manifest with ``command`` in its first line, and what was left out, why, and ``data`` behind it."""
    text = io.StringIO(newline="")
    text.write(f"# {printable(command)}\n")
    for video, reason in (left_out or {}).items():
        text.write(f"# left out: {printable(f'{os.path.relpath(video, path.parent)}: {reason}')}\n")
    if data:
        text.write(f"{SETTINGS}{json.dumps(data)}\n")
    rows = [
        (
            *(os.path.relpath(sample.path, path.parent), sample.label, sample.split, sample.group),
            *(sample.frames, sample.fps, sample.duration_s, sample.codec, sample.width, sample.height),
        )
        for sample in samples
    ]
    # Before Python 3.13 the module does not quote a field for its carriage return alone, and then cannot read it.
    returns = any("\r" in str(field) for row in rows for field in row)
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
    writer.writerows([COLUMNS, *rows])
    with atomic_write(path) as stream:
        stream.write(os.fsencode(text.getvalue()))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        UsageError: the file is missing or is none.
    """
    try:
        text = io.StringIO(os.fsdecode(path.read_bytes()), newline="")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); make it with python -m training prepare"
        ) from None
    rows = csv.DictReader(dropwhile(lambda line: line.startswith("#"), text))
    folder = path.absolute().parent
    try:
        if tuple(columns := rows.fieldnames or ()) != COLUMNS:
            raise UsageError(
                f"{path}: columns {', '.join(columns)}; expected {', '.join(COLUMNS)}: make it with python -m training "
                "prepare"
            )
        samples = tuple(_sample(folder, row) for row in rows)
        data = _data(text.getvalue().splitlines())
    except (TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"{path}: a row is damaged ({error}); make it again with python -m training prepare") from None
    if not samples:
        raise UsageError(f"{path}: no samples")
    return Manifest(samples, data)


def _data(lines: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the comments of a manifest tell, {} where they tell none."""
    comments = takewhile(lambda line: line.startswith("#"), lines)
    told = next((line for line in comments if line.startswith(SETTINGS)), f"{SETTINGS}{{}}")
    return dict(json.loads(told.removeprefix(SETTINGS)))


def _sample(folder: Path, row: dict[str, str]) -> Sample:
    return Sample(
        Path(os.path.normpath(folder / row["path"])),
        row["label"],
        row["group"],
        row["split"],
        int(row["frames"]),
        float(row["fps"]),
        float(row["duration_s"]),
        row["codec"],
        int(row["width"]),
        int(row["height"]),
    )
