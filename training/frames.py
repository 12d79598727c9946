"""Sampled frames as folders of JPEG files, for people whose tools want them.

out/<split>/<class>/<video>/000.jpg ...    out/frames.csv: folder, video, label, split, group
"""

import csv
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count
from pathlib import Path

from PIL import Image

from harec_deploy.decode import Size, choose
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.files import atomic_folder, atomic_write
from harec_deploy.machine import cores
from harec_deploy.sampling import ClipSampling, whole
from training.datasets import Manifest, Sample

QUALITY = 95
COLUMNS = ("video", "label", "split", "group")


def extract(
    manifest: Manifest,
    out: Path,
    sampling: ClipSampling,
    size: Size,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Path, VideoError]:
    """Write the frames that a model would be given of each video; folders that are there already are left alone.

    Returns the videos that cannot be decoded, and why.

    Raises:
        UsageError: ``out`` has frames of another sampling or size.
    """
    out.mkdir(parents=True, exist_ok=True)
    same_settings(out, "frames", f"{sampling}\n{size}\n")
    folders = places(manifest.samples)
    problems: dict[Path, VideoError] = {}
    with ThreadPoolExecutor(cores()) as pool:
        ended = pool.map(partial(_extract, out, sampling, size), folders, manifest.samples)
        for done, (sample, error) in enumerate(zip(manifest.samples, ended, strict=True), 1):
            if error:
                problems[sample.path] = error
            progress(done, len(folders))
    rows = zip(folders, manifest.samples, strict=True)
    write_table(out / "frames.csv", "folder", [row for row in rows if row[1].path not in problems])
    return problems


def same_settings(out: Path, what: str, settings: str) -> None:
    """Note in ``out`` the settings that ``what`` in it is made with. Raises UsageError if others are noted there."""
    path = out / "settings.txt"
    if path.exists() and path.read_text() != settings:
        raise UsageError(f"{out} has {what} of other settings ({path}): name another folder")
    with atomic_write(path) as stream:
        stream.write(settings.encode())


def places(samples: Sequence[Sample]) -> list[str]:
    """Return a relative path for what is made of each sample, split/class/video; videos of one name are numbered."""
    names = ["/".join((s.split or "all", s.label.replace("/", "_").lstrip(".") or "_", s.path.stem)) for s in samples]
    found: dict[str, None] = {}
    for name in names:
        numbers = (f"{name}-{number}" for number in count(2))
        found[next(free for free in chain([name], numbers) if free not in found)] = None
    return list(found)


def _extract(out: Path, sampling: ClipSampling, size: Size, folder: str, sample: Sample) -> VideoError | None:
    place = out / folder
    if place.exists():
        return None
    try:
        frames = choose().frames(sample.path, lambda info: sampling.timestamps_s(whole(info.duration_s)[0]), size)
    except VideoError as error:
        return error
    with atomic_folder(place) as staging:
        for number, pixels in enumerate(frames.pixels):
            Image.fromarray(pixels).save(staging / f"{number:03d}.jpg", quality=QUALITY, subsampling=0)
    return None


def write_table(path: Path, what: str, rows: Sequence[tuple[str, Sample]]) -> None:
    """Write a CSV file of what was made of which video; ``what`` names its first column, a path."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((what, *COLUMNS))
    writer.writerows([made, str(s.path), s.label, s.split, s.group] for made, s in rows)
    with atomic_write(path) as stream:
        stream.write(os.fsencode(text.getvalue()))
