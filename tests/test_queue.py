"""Two kinds of decoder on one queue: each video is answered once, whatever becomes of the decoder of several.

A CPU decoder stands in for the one of several videos where it must fail in a given way; the last tests use DALI itself.
"""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.decode import DECODERS
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.discover import VideoFile
from harec_deploy.errors import MissingDependency, OutputError, UsageError
from harec_deploy.label import decoders
from harec_deploy.label.child import BatchPlan, Plan
from harec_deploy.label.decoders import choose_decoders
from harec_deploy.label.journal import Row, read_header, read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.label.slots import MAX_LOSSES, Decoded
from harec_deploy.label.summary import Summary
from harec_deploy.label.workers import decode_ahead
from harec_deploy.sampling import whole
from harec_deploy.spec import BundleSpec
from tests.media import make_video, rotate
from tests.test_workers import QUICK, children, plan_for, videos_in

GOOD = 5


@pytest.fixture(scope="module")
def spec(exported: Path) -> BundleSpec:
    return load(exported).spec


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.fixture
def folder(tmp_path: Path, videos: Path) -> Path:
    """A folder of good videos, as many in each test."""
    (tmp_path / "in").mkdir()
    good = next(videos.rglob("*.mp4")).read_bytes()
    for place in range(GOOD):
        (tmp_path / "in" / f"good{place}.mp4").write_bytes(good)
    return tmp_path / "in"


def fault(folder: Path, name: str) -> Path:
    """Put a sound video beside the others, with a fault in its name."""
    path = folder / f"{name}.mp4"
    path.write_bytes((folder / "good0.mp4").read_bytes())
    return path


def plan(spec: BundleSpec, *, shared: bool = False, silence_s: float = 60.0, **batch: Any) -> Plan:
    fields = {"name": "stand-in", "decoder": "tests.faulty:FaultyBatch", "device": "cpu", "places": 4}
    return plan_for(spec, batch=BatchPlan(**fields | batch, shared=shared, silence_s=silence_s))


def decode(videos: list[VideoFile], made: Plan, workers: int = 1) -> dict[str, Decoded]:
    """Return what was decoded, once each, and nothing left behind."""
    before, threads = children(), threading.active_count()
    done = list(decode_ahead(videos, made, workers))
    assert Counter(item.video for item in done) == Counter(videos)
    assert children() == before
    assert threading.active_count() == threads
    return {Path(item.video.name).stem: item for item in done}


def assert_good(done: dict[str, Decoded], spec: BundleSpec) -> None:
    """Check the frames of every video: they are all alike."""
    path = next(iter(done.values())).video.path
    wanted = PyAVDecoder().frames(path, lambda i: spec.sampling.timestamps_s(whole(i.duration_s)[0]), spec.size)
    for name, item in done.items():
        assert item.frames is not None, f"{name}: {item.error}"
        np.testing.assert_array_equal(item.frames.pixels, wanted.pixels, err_msg=name)
        np.testing.assert_array_equal(item.frames.shown_s, wanted.shown_s)


@pytest.mark.parametrize("children_count", [1, 2])
def test_all_go_through_it_where_it_takes_all(spec: BundleSpec, folder: Path, children_count: int) -> None:
    done = decode(videos_in(folder), plan(spec, children=children_count), 2)
    assert_good(done, spec)
    assert {item.route for item in done.values()} == {"stand-in"}
    assert all(item.seconds > 0 and not item.refused for item in done.values())


LOST = {  # with the child, or answered with what cannot be; the reason that is kept
    "SEGV": "died of SIGSEGV",
    "ABRT": "died of SIGABRT",
    "KILL": "killed from outside",
    "EXIT": "exit status 0",
    "RAISE": "IndexError: list index out of range",
    "SAY": "(exit status 7): what went wrong",
    "OOM": "MemoryError",
    "TWICE": None,
    "STRANGER": "KeyError",
    "FLOOD": "gave no answer",
    "REFUSE": "as asked",
    "NONE": "gave no answer",
    "SHAPE": "frames of shape",
    "PART": "more frames than a part holds",
    "MANY": "more frames than a part holds",
}


@pytest.mark.parametrize("name", LOST)
def test_a_fault_costs_no_video(spec: BundleSpec, folder: Path, name: str) -> None:
    fault(folder, f"good3_{name}")
    done = decode(videos_in(folder), plan(spec))
    assert_good(done, spec)
    if LOST[name]:
        culprit = done.pop(f"good3_{name}")
        assert culprit.route == "pyav"
        assert LOST[name] in culprit.refused
        assert {item.route for item in done.values()} == {"stand-in"}


@pytest.mark.parametrize("name", ["HANG", "HOLD", "GARBAGE"])
def test_silence_costs_no_video(spec: BundleSpec, folder: Path, name: str) -> None:
    # Whether a slow machine loses other videos too is not said here: those are decoded all the same.
    fault(folder, f"good3_{name}")
    done = decode(videos_in(folder), plan(spec, silence_s=4.0))
    assert_good(done, spec)
    assert done[f"good3_{name}"].route == "pyav"
    assert done[f"good3_{name}"].refused


def test_a_decoder_that_is_lost_again_and_again_is_left_alone(spec: BundleSpec, folder: Path) -> None:
    for place in range(2 * MAX_LOSSES):
        fault(folder, f"a{place}_EXIT")
    done = decode(videos_in(folder), plan(spec), 2)
    assert_good(done, spec)
    assert {item.route for name, item in done.items() if name.startswith("a")} == {"pyav"}
    assert sum(bool(item.refused) for item in done.values()) < 2 * MAX_LOSSES  # the others were never given to it


def test_many_faults_at_once(spec: BundleSpec, folder: Path) -> None:
    for place, name in enumerate(["SEGV", "REFUSE", "SHAPE", "NONE", "EXIT", "STRANGER", "REFUSE", "OOM"]):
        fault(folder, f"good{place}_{name}")
    assert_good(decode(videos_in(folder), plan(spec, shared=True, children=2), 2), spec)


def test_what_fails_in_both_is_one_error(
    spec: BundleSpec, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODERS, "pyav", "tests.faulty:FaultyDecoder")
    (folder / "bad_REFUSE.mp4").write_text("SEGV please")
    (folder / "text.mp4").write_text("no video")
    missing = VideoFile.at("missing", tmp_path / "missing")
    made = msgspec.structs.replace(plan(spec), limits=QUICK)
    done = decode([*videos_in(folder), missing], made)
    errors = {name: (item.error.kind, item.route) for name, item in done.items() if item.error}
    assert errors == {
        "bad_REFUSE": ("decoder_crashed", "pyav"),
        "text": ("not_video", "stand-in"),
        "missing": ("vanished", "pyav"),
    }
    assert_good({name: item for name, item in done.items() if not item.error}, spec)


def test_long_videos_go_part_by_part(spec: BundleSpec, folder: Path) -> None:
    made = msgspec.structs.replace(plan(spec), count=spec.sampling.frames - 1)
    found = videos_in(folder)
    done = list(decode_ahead(found, made, 1))
    assert len(done) == 2 * GOOD
    assert {item.route for item in done} == {"pyav"}
    assert Counter(item.video for item in done if item.last) == Counter(found)
    assert sum(bool(item.refused) for item in done) == GOOD


@pytest.mark.parametrize("end", ["close", "stop"])
def test_ending_ends_the_children(spec: BundleSpec, folder: Path, end: str) -> None:
    for place in range(GOOD):
        fault(folder, f"good{place}_HANG")
    before, threads, stop = children(), threading.active_count(), threading.Event()
    stream = decode_ahead(videos_in(folder), plan(spec, shared=True), 1, stop)
    first = next(stream)
    if end == "close":
        stream.close()
    else:
        stop.set()
        rest = [first, *stream]
        assert len({item.video for item in rest}) == len(rest)
    assert children() == before
    assert threading.active_count() == threads


def test_a_child_of_several_has_few_rights(spec: BundleSpec, folder: Path) -> None:
    fault(folder, "zz_HANG")
    stream = decode_ahead(videos_in(folder), plan(spec), 1)
    next(stream)
    (child,) = children()
    status = Path(f"/proc/{child}/status").read_text()
    limits = {
        line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{child}/limits").read_text().splitlines()
    }
    stream.close()
    assert "NoNewPrivs:\t1" in status
    assert limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(4 << 30)] * 2
    assert limits["Max open files"] == ["64", "64"]


# A run with DALI itself.


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos that DALI takes on a CPU, and others."""
    root = tmp_path_factory.mktemp("mixed")
    for place in range(3):
        make_video(root / f"vp9_{place}.webm", codec="libvpx-vp9", seed=place)
        make_video(root / f"mjpeg_{place}.avi", codec="mjpeg", seed=place)
        make_video(root / f"h264_{place}.mp4", seed=place)
    rotate(make_video(root / "turned.mp4", codec="libvpx-vp9"), 90)
    (root / "text.webm").write_text("no video")
    return root


def run(bundle: Path, mixed: Path, out: Path, **options: Any) -> Summary:
    return label(bundle, [str(mixed)], Options(out=out, device="cpu", **{"workers": 1} | options))


def rows_of(out: Path) -> dict[str, Row]:
    return {Path(row.path).name: row for row in read_rows(out).values()}


@pytest.mark.parametrize("decoder", ["both", "dali"])
def test_a_run_gives_the_rows_of_the_reference(exported: Path, mixed: Path, tmp_path: Path, decoder: str) -> None:
    run(exported, mixed, tmp_path / "pyav.jsonl", decoder="pyav")
    summary = run(exported, mixed, tmp_path / "out.jsonl", decoder=decoder)
    wanted, found = rows_of(tmp_path / "pyav.jsonl"), rows_of(tmp_path / "out.jsonl")
    assert set(found) == set(wanted)
    for name, row in found.items():
        assert (row.status, row.label, row.error) == (wanted[name].status, wanted[name].label, wanted[name].error), name
        assert row.score == pytest.approx(wanted[name].score, abs=0.1) if row.score else wanted[name].score is None
        assert row.frames_decoded == wanted[name].frames_decoded
    header = read_header(tmp_path / "out.jsonl")
    assert header is not None
    assert header.decoder == decoder
    routes = Counter(row.decoder for row in found.values())
    assert summary.stages.routes == routes
    assert {found[name].decoder for name in found if name.startswith(("h264", "turned"))} == {"pyav"}
    if decoder == "dali":
        assert {found[name].decoder for name in found if name.startswith(("vp9", "mjpeg"))} == {"dali"}
        assert routes == {"pyav": 4, "dali": 7}
    facts = msgspec.to_builtins(summary.facts())
    assert facts["stages"]["routes"] == routes
    assert facts["stages"]["batch_s"] > 0


def test_the_summary_and_the_page_tell_the_routes(exported: Path, mixed: Path, tmp_path: Path) -> None:
    from harec_deploy.label.page import stages

    summary = run(exported, mixed, tmp_path / "out.jsonl", decoder="dali")
    told = summary.stages.routes_told()
    assert "pyav 4 videos" in told
    assert "dali 7 videos" in told
    page = stages(tmp_path / "out.jsonl")
    assert "dali 7 videos" in page
    assert "decode by dali" in page
    one = run(exported, mixed, tmp_path / "one.jsonl", decoder="pyav")
    assert one.stages.routes_told() == ""
    assert "videos, " not in stages(tmp_path / "one.jsonl")


def test_a_journal_keeps_its_decoder(exported: Path, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(exported, mixed, out, decoder="both")
    with pytest.raises(OutputError, match=r"decoder pyav \(the journal has both\)"):
        run(exported, mixed, out, decoder="pyav")
    assert run(exported, mixed, out).done == 0  # "auto" keeps it
    header = read_header(out)
    assert header is not None
    assert header.decoder == "both"


def test_the_command_line_names_it(exported: Path, mixed: Path, tmp_path: Path) -> None:
    from harec_deploy.__main__ import app

    words = ["label", str(mixed), "-b", str(exported), "-o", str(tmp_path / "out.jsonl"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--decoder", "dali", "--workers", "1"])
    assert done.exit_code == 3, done.output  # text.webm is no video
    assert "with dali on cpu (asked for)" in done.output
    assert "pyav 4 videos" in done.output


CUDA = ("cuda:0", "cpu")
WANTED: dict[str, tuple[str, str, tuple[str, ...], bool, str | None, str]] = {
    # asked, device, what there is, DALI installed, begun with: what is chosen
    "a GPU and DALI": ("auto", "auto", CUDA, True, None, "both cuda:0"),
    "a GPU alone": ("auto", "auto", CUDA, False, None, "pyav cpu"),
    "DALI alone": ("auto", "auto", ("cpu",), True, None, "pyav cpu"),
    "the CPU is named": ("auto", "cpu", ("cpu",), True, None, "pyav cpu"),
    "begun": ("auto", "auto", CUDA, True, "pyav", "pyav cpu"),
    "begun with both": ("auto", "cpu", ("cpu",), True, "both", "both cpu"),
    "pyav": ("pyav", "auto", CUDA, True, "both", "pyav cpu"),
    "dali": ("dali", "cuda:0", ("cuda:0",), True, None, "dali cuda:0"),
    "dali on the CPU": ("dali", "cpu", ("cpu",), True, None, "dali cpu"),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, ...], bool], None]:
    """Let a machine seem to have these devices, and DALI or not."""

    def set_up(there: tuple[str, ...], dali: bool) -> None:
        monkeypatch.setattr(decoders, "resolve", lambda device: there)
        monkeypatch.setattr(decoders, "has_dali", lambda: dali)
        if not dali:
            monkeypatch.setattr("harec_deploy.decode.has_dali", lambda: False)

    return set_up


@pytest.mark.parametrize("case", WANTED)
def test_auto_chooses(machine: Callable[..., None], case: str) -> None:
    asked, device, there, dali, begun, wanted = WANTED[case]
    machine(there, dali)
    choice = choose_decoders(asked, device, begun)
    assert f"{choice.name} {choice.device}" == wanted
    assert choice.reason


def test_what_is_missing_is_said(machine: Callable[..., None]) -> None:
    machine(("cpu",), True)
    with pytest.raises(UsageError, match=r"no GPU here; .* --device cpu DALI decodes VP8, VP9 and MJPEG"):
        choose_decoders("dali", "auto")
    with pytest.raises(UsageError, match="allowed are auto, pyav, dali, both"):
        choose_decoders("vlc", "cpu")
    machine(CUDA, False)
    with pytest.raises(MissingDependency, match=r"pip install 'harec-deploy\[dali\]'"):
        choose_decoders("both", "cuda:0")
