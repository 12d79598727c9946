"""Finds the videos of a labelling run: what is there, what was passed over and why.

Nothing is opened here. In a folder only regular files are taken, and links are not followed, or only those that stay
inside it, so nothing outside of what was named is reached.
"""

import codecs
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harec_deploy.errors import UsageError, VideoError
from harec_deploy.shard import Shard, place_of

_SUFFIXES = "3g2 3gp asf avi divx dv flv m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv"
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())


@dataclass(frozen=True, slots=True, eq=False)
class VideoFile:
    """One input: ``name`` as shown in the journal, absolute ``path``, and its identity.

    error: why it cannot be a video, found without opening it.
    """

    name: str
    path: Path
    size: int = 0
    mtime_ns: int = 0
    error: VideoError | None = None

    @classmethod
    def at(cls, name: str, path: Path) -> "VideoFile":
        """Look at ``path``, without following a link, and take down what is there."""
        try:
            status = path.lstat()
        except OSError as error:
            return cls(name, path, error=VideoError("vanished", f"{error.strerror}"))
        if not stat.S_ISREG(status.st_mode):
            return cls(name, path, error=VideoError("not_regular"))
        return cls(name, path, status.st_size, status.st_mtime_ns)

    @classmethod
    def named(cls, name: str) -> "VideoFile":
        """Look at what was named itself: then what a link leads to is meant."""
        try:
            path = Path(os.path.realpath(name))
        except ValueError:  # a zero in it
            return cls(name, Path(), error=VideoError("vanished", "no file can have such a name"))
        return cls.at(name, path)

    @property
    def key(self) -> tuple[str, int, int]:
        """What a finished row is found by when a run is resumed."""
        return (self.name, self.size, self.mtime_ns)


@dataclass(slots=True)
class Discovery:
    """All inputs, sorted by name, and counts of what was passed over by reason.

    elsewhere: how many videos belong to other shards.
    """

    videos: list[VideoFile] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0


def discover(
    inputs: Iterable[str],
    *,
    all_files: bool = False,
    follow_links: bool = False,
    but: Iterable[Path] = (),
    shard: Shard | None = None,
) -> Discovery:
    """Find the videos of ``inputs``: files, folders (recursive), globs, ``@list.txt``.

    A list has a path a line, or a zero behind each path, as ``find -print0`` writes it; "-" is one on standard input.
    A file that is named is always taken; in a folder only names with a video's suffix are, unless ``all_files``.
    A file that is reached twice by the same name counts once.

    follow_links: in a folder also take the files that links lead to, if they lie inside the folder that was named and
        were not reached without a link; each of them once, by the name of its first link.
    but: files and folders that are not taken from folders: the run's own.
    shard: take only the videos that belong to it; together the shards of the same inputs have each video once.

    Raises:
        UsageError: a path that does not exist, a glob that matches nothing, a URL.
    """
    found = Discovery()
    own = frozenset(os.path.realpath(path) for path in but)
    places: dict[str, str] = {}  # of the videos, by name; kept for shards alone
    for name in _expand(inputs):
        before, root = len(found.videos), ""
        if Path(name).is_dir():
            root = name
            links = list(_walk(name, found, all_files=all_files, own=own))
            followed = _follow(links, name, found, all_files=all_files) if follow_links else 0
            found.ignored["links"] += len(links) - followed
        else:
            found.videos.append(VideoFile.named(name))
        if shard:
            places.update((video.name, place_of(video.name, root)) for video in found.videos[before:])
    found.ignored += Counter()  # without the zeros
    unique = {video.name: video for video in found.videos}
    if shard:  # a video that two inputs have is one, so it is shared out when that is settled
        found.elsewhere = len(unique)
        unique = {name: video for name, video in unique.items() if shard.has(places[name])}
        found.elsewhere -= len(unique)
    found.videos = sorted(unique.values(), key=lambda video: os.fsencode(video.name))
    return found


def _expand(inputs: Iterable[str], lists: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the paths that inputs stand for; ``lists`` are the files that they come from, one named in the other."""
    for text in inputs:
        if text == "-":
            yield from _expand(_from_stdin(), lists)
        elif text.startswith("@"):
            file = os.path.realpath(text[1:])
            if file in lists:
                raise UsageError(f"{text}: the list names itself; expected a text file with a path a line")
            yield from _expand(_listed(Path(text[1:])), (*lists, file))
        elif os.path.lexists(text):
            short = os.path.normpath(text)
            # Behind a link to a folder ".." is not the folder that the link lies in.
            yield short if os.path.realpath(short) == os.path.realpath(text) else text
        elif "://" in text:
            raise UsageError(f"{text}: only local files and folders are labelled; download it first")
        elif any(mark in text for mark in "*?["):
            matches = (
                sorted(str(match) for match in Path().glob(text)) if not Path(text).is_absolute() else _absolute(text)
            )
            if not matches:
                raise UsageError(f"{text}: nothing matches")
            yield from matches
        else:
            raise UsageError(f"{text}: no such file or folder")


def _absolute(pattern: str) -> list[str]:
    anchor = Path(pattern).anchor
    return sorted(str(match) for match in Path(anchor).glob(str(Path(pattern).relative_to(anchor))))


def _listed(path: Path) -> list[str]:
    try:
        return _paths(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"@{path}: cannot be read ({error.strerror}); expected a text file with a path a line"
        ) from None


def _from_stdin() -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- stands for a list on standard input, and there is none: find videos -type f | ... -")
    return _paths(sys.stdin.buffer.read())


def _paths(text: bytes) -> list[str]:
    """Return the paths of a list: one a line, or with a zero behind each, as ``find -print0`` writes them."""
    if b"\0" in text:
        return [os.fsdecode(path) for path in text.split(b"\0") if path]
    lines = text.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()]


def _walk(folder: str, found: Discovery, *, all_files: bool, own: frozenset[str]) -> Iterator[str]:
    """Take the videos of a folder and of those in it; yield the links."""
    names = {Path(path).name for path in own}  # a path is resolved only where its name says that it may be own
    open_folders = [_entries(folder, found)]  # no recursion: folders may lie deeper than Python can call
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif entry.is_symlink():
            yield entry.path
        elif entry.name in names and os.path.realpath(entry.path) in own:
            found.ignored["own files"] += 1
        elif entry.is_dir(follow_symlinks=False):
            open_folders.append(_entries(entry.path, found))
        elif all_files or _is_named_like_a_video(entry.path):
            found.videos.append(VideoFile.at(entry.path, Path(entry.path).absolute()))
        else:
            found.ignored["other files"] += 1


def _entries(folder: str, found: Discovery) -> Iterator[os.DirEntry[str]]:
    """Return what is in a folder, by name; one that cannot be read is taken down as a video that failed."""
    try:
        return iter(sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)))
    except OSError as error:
        reason = VideoError("unreadable", f"{error.strerror}")
        found.videos.append(VideoFile(folder, Path(folder).absolute(), error=reason))
        return iter(())


def _follow(links: Iterable[str], root: str, found: Discovery, *, all_files: bool) -> int:
    """Take what ``links`` in ``root`` lead to, and return how many files that were.

    A link to a folder inside leads to nothing new: all that is in it was walked to already.
    """
    inside = Path(os.path.realpath(root))
    taken = {os.path.realpath(video.path) for video in found.videos}
    before = len(taken)
    for name in links:
        target = os.path.realpath(name)
        wanted = all_files or _is_named_like_a_video(name)
        if wanted and target not in taken and inside in Path(target).parents and Path(target).is_file():
            taken.add(target)
            found.videos.append(VideoFile.at(name, Path(target)))
    return len(taken) - before


def _is_named_like_a_video(path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES


def truth_of(path: Path, classes: Sequence[str]) -> str | None:
    """Return the class that a video's folder, or the folder around that one, is named after; None if neither is."""
    return next((parent.name for parent in list(path.parents)[:2] if parent.name in classes), None)
