"""A decoder that crashes, hangs or eats memory costs one video: real children, real signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harec_deploy.bundle import load
from harec_deploy.decode import DECODERS, choose
from harec_deploy.discover import VideoFile, discover
from harec_deploy.label.child import Limits, Plan
from harec_deploy.label.workers import Decoded, decode_ahead
from harec_deploy.sampling import whole
from harec_deploy.spec import BundleSpec

QUICK = Limits(memory_bytes=2 << 30, seconds=2.0)


@pytest.fixture(scope="module")
def spec(exported: Path) -> BundleSpec:
    return load(exported).spec


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "pyav", "tests.faulty:FaultyDecoder")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def videos_in(folder: Path) -> list[VideoFile]:
    return discover([str(folder)]).videos


def plan_for(spec: BundleSpec, limits: Limits | None = None, **changes: Any) -> Plan:
    fields = {"count": 20, "limits": limits or Limits()} | changes
    return Plan(decoder=DECODERS["pyav"], sampling=spec.sampling, size=spec.size, **fields)


def decode(videos: list[VideoFile], spec: BundleSpec, workers: int = 2, limits: Limits = QUICK) -> dict[str, Decoded]:
    done = list(decode_ahead(videos, plan_for(spec, limits), workers))
    assert len(done) == len(videos)
    return {Path(item.video.name).name: item for item in done}


def children(parent: int | None = None) -> set[int]:
    """Return the process ids of a process's living children."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if int(ppid) == (parent or os.getpid()) and state != "Z":
            found.add(int(folder.name))
    return found


def test_frames_are_those_of_the_decoder_in_this_process(spec: BundleSpec, videos: Path) -> None:
    for name, item in decode(videos_in(videos), spec).items():
        assert item.frames is not None, name
        path = item.video.path
        here = choose().frames(path, lambda i: spec.sampling.timestamps_s(whole(i.duration_s)[0]), spec.size)
        np.testing.assert_array_equal(item.frames.pixels, here.pixels)
        np.testing.assert_array_equal(item.frames.shown_s, here.shown_s)
        assert item.frames.info == here.info
        assert item.last
        assert item.seconds > 0


FAULTS = {
    "SEGV": ("decoder_crashed", "the decoder died of SIGSEGV"),
    "ABRT": ("decoder_crashed", "the decoder died of SIGABRT"),
    "KILL": ("out_of_memory", "killed from outside"),
    "EXIT": ("decoder_crashed", "gave no answer (exit status 0)"),
    "RAISE": ("decoder_crashed", "IndexError: list index out of range"),
    "SAY": ("decoder_crashed", "(exit status 7): what went wrong"),
    "HANG": ("timeout", "decoding took longer than 2 s"),
    "HOLD": ("timeout", "decoding took longer than 2 s"),
    "SPIN": ("timeout", "decoding took"),
    "OOM": ("out_of_memory", "the memory limit was reached"),
    "GARBAGE": ("decoder_crashed", "gave no answer"),
    "FLOOD": ("decoder_crashed", "gave no answer"),
    "WRITE": ("decoder_crashed", "File too large"),
}


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_one_video(spec: BundleSpec, videos: Path, tmp_path: Path, fault: str) -> None:
    (tmp_path / "b_fault.mp4").write_text(f"{fault} please")
    good = next(videos.rglob("*.mp4")).read_bytes()
    for name in ("a.mp4", "c.mp4", "d.mp4"):
        (tmp_path / name).write_bytes(good)
    before = children()
    done = decode(videos_in(tmp_path), spec, workers=1)
    kind, message = FAULTS[fault]
    error = done["b_fault.mp4"].error
    assert error is not None
    assert error.kind == kind
    assert message in str(error)
    assert all(done[name].frames is not None for name in ("a.mp4", "c.mp4", "d.mp4"))
    assert children() == before


@pytest.mark.usefixtures("faulty")
def test_many_faults_at_once_change_no_other_video(spec: BundleSpec, videos: Path, tmp_path: Path) -> None:
    good = next(videos.rglob("*.avi")).read_bytes()
    for place in range(24):
        fault = ("SEGV", "EXIT", "OOM", "KILL")[place % 4] if place % 3 == 0 else None
        (tmp_path / f"{place:02d}.avi").write_bytes(fault.encode() if fault else good)
    done = decode(videos_in(tmp_path), spec, workers=4)
    kinds = Counter(item.error.kind if item.error else "ok" for item in done.values())
    assert kinds == {"ok": 16, "decoder_crashed": 4, "out_of_memory": 4}
    first = next(item.frames for item in done.values() if item.frames)
    for item in done.values():
        if item.frames:
            np.testing.assert_array_equal(item.frames.pixels, first.pixels)


def test_a_video_that_changes_or_goes_is_noticed(spec: BundleSpec, videos: Path, tmp_path: Path) -> None:
    good = next(videos.rglob("*.mp4")).read_bytes()
    for name in ("changed.mp4", "gone.mp4"):
        (tmp_path / name).write_bytes(good)
    found = videos_in(tmp_path)
    (tmp_path / "changed.mp4").write_bytes(good + b"\0")
    (tmp_path / "gone.mp4").unlink()
    done = decode(found, spec)
    assert {name: item.error.kind for name, item in done.items() if item.error} == {
        "changed.mp4": "changed",
        "gone.mp4": "vanished",
    }


@pytest.mark.usefixtures("faulty")
def test_closing_ends_the_children_at_once(spec: BundleSpec, tmp_path: Path) -> None:
    for place in range(6):
        (tmp_path / f"{place}.mp4").write_text("HANG")
    before, threads = children(), threading.active_count()
    missing = VideoFile.at("missing", tmp_path / "missing")
    stream = decode_ahead([*videos_in(tmp_path)[:2], missing, *videos_in(tmp_path)[2:]], plan_for(spec), 3)
    assert next(stream).video is missing  # which is answered at once, after two children were given a video to hang on
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 5
    assert children() == before
    assert threading.active_count() == threads


@pytest.mark.usefixtures("faulty")
def test_children_die_with_their_parent(spec: BundleSpec, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "hang.mp4").write_text("HANG")
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from harec_deploy.bundle import load
        from harec_deploy.decode import DECODERS
        from harec_deploy.discover import discover
        from harec_deploy.label.workers import decode_ahead
        from tests.test_workers import plan_for
        DECODERS["pyav"] = "tests.faulty:FaultyDecoder"
        list(decode_ahead(discover([{str(tmp_path)!r}]).videos, plan_for(load(Path({str(exported)!r})).spec), 1))
    """
    parent = subprocess.Popen([sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())])
    deadline = time.monotonic() + 30
    pids: set[int] = set()
    while not pids and time.monotonic() < deadline:
        assert parent.poll() is None
        pids = children(parent.pid)
    (child,) = pids
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{child}/stat").read_text().split()[2]
        if state == "Z":
            break
    else:
        assert not Path(f"/proc/{child}").exists(), "the child outlived its parent"


def test_a_child_has_few_rights(spec: BundleSpec, videos: Path) -> None:
    before = children()
    stream = decode_ahead(videos_in(videos), plan_for(spec), 1)
    next(stream)
    (child,) = children() - before
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines() if ":\t" in line
    )
    limits = Path(f"/proc/{child}/limits").read_text()
    stream.close()
    assert status["NoNewPrivs"] == "1"
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max core file size"] == ["0", "0"]
    assert rows["Max file size"] == ["0", "0"]
    assert rows["Max address space"] == [str(4 << 30)] * 2
    assert rows["Max open files"] == ["64", "64"]


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from harec_deploy.bundle import load
from harec_deploy.discover import discover
from harec_deploy.errors import UsageError
from harec_deploy.label.workers import allow_open_files, decode_ahead
from tests.test_workers import plan_for
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
allow_open_files(11)
print(resource.getrlimit(resource.RLIMIT_NOFILE))
try:
    allow_open_files(12)
except UsageError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
plan = plan_for(load(Path({bundle!r})).spec)
print([item.error for item in decode_ahead(discover([{videos!r}]).videos[:3], plan, 1)])
"""


def test_limits_from_outside_are_kept(exported: Path, videos: Path) -> None:
    code = LIMITED.format(root=str(Path(__file__).parents[1]), videos=str(videos), bundle=str(exported))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    raised, refused, decoded = done.stdout.splitlines()
    assert raised == "(300, 300)"
    assert refused.startswith("12 decoding children need 304 open files, and the system allows 300: raise that (ulimit")
    assert decoded == "[None, None, None]", done.stderr
