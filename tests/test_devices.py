"""Several devices label one folder: what they are called, how cores are shared out, and that no row tells how many."""

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from harec_deploy import devices
from harec_deploy.devices import CudaDevice, core_shares, engine_devices, resolve
from harec_deploy.discover import discover
from harec_deploy.errors import BundleError, EngineError, UsageError
from harec_deploy.label.engine_messages import Load, Work
from harec_deploy.label.engines import Engines, Here, load_engines
from harec_deploy.label.journal import Row, read_header, read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label, make_plan
from harec_deploy.label.summary import Summary
from tests.matrix.run import assert_same_label
from tests.media import cut, make_video
from tests.test_workers import children


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, as the driver would show them."""
    found = tuple(CudaDevice(index, "H100", (9, 0), 80 << 30, (13, 0)) for index in range(3))
    monkeypatch.setattr(devices, "cuda_devices", lambda: found)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cpu", "cpu"),
        ("cuda", "cuda:0"),
        ("cuda:2", "cuda:2"),
        ("cuda:all", "cuda:0 cuda:1 cuda:2"),
        ("cuda:0,cuda:2", "cuda:0 cuda:2"),
        ("cuda:2, cpu", "cuda:2 cpu"),
        ("cuda:all,cpu", "cuda:0 cuda:1 cuda:2 cpu"),
        ("cpu,cpu", "cpu cpu"),
    ],
)
def test_what_a_name_stands_for(text: str, wanted: str) -> None:
    assert resolve(text) == engine_devices(text) == tuple(wanted.split())


@pytest.mark.usefixtures("gpus")
def test_auto_is_one_of_several_and_no_list() -> None:
    assert resolve("auto") == ("cuda:0", "cpu")
    assert engine_devices("auto") == ("auto",)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuda:3", "device cuda:3 is not here: there is cpu, cuda:0, cuda:1, cuda:2; allowed are auto, cpu, cuda:N"),
        ("cuda:0,cuda:3", "device cuda:3 is not here"),
        ("cuda:1,cuda:1", "cuda:1 is in it twice; name each GPU once"),
        ("cuda:all,cuda:1", "cuda:1 is in it twice"),
        ("cuda,cuda:0", "cuda:0 is in it twice"),
        ("cpu,auto", "device cpu,auto: a list names each device"),
        ("cpu,", "device cpu,: a list names each device, such as cuda:0,cuda:2 or cpu,cpu"),
        ("", "device  is not here"),
    ],
)
def test_names_that_stand_for_nothing(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine_devices(text)


def test_all_gpus_of_a_machine_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_devices", lambda: ())
    with pytest.raises(UsageError, match="device cuda:all is not here: there is cpu"):
        engine_devices("cuda:all")


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, "01234567"), (2, "0145 2367"), (3, "01 245 367"), (8, "0 1 4 5 2 3 6 7")]
)
def test_cores_are_shared_out_by_node(monkeypatch: pytest.MonkeyPatch, count: int, wanted: str) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(devices, "_numa_nodes", lambda: dict.fromkeys((2, 3, 6, 7), 1))
    shares = [sorted(share) for share in core_shares(count)]
    assert sorted(chain(*shares)) == list(range(8))
    if count > 1:
        assert ["".join(map(str, share)) for share in shares] == wanted.split()


def test_of_few_cores_each_share_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5})
    shares = core_shares(5)
    assert all(len(share) == 1 for share in shares)
    assert set(chain(*shares)) == {4, 5}


@pytest.fixture
def folder(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good videos and bad ones, and one whose name is no text, in the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(videos, "in")
    Path("in/a_text.mp4").write_text("no video")
    cut(make_video(Path("in/swim/cut.mp4"), frames=40), 0.7)
    os.mkfifo("in/swim/fifo.mp4")
    shutil.copy("in/climb/v_climb_g01_c01.mp4", os.fsdecode(b"in/\xff\xfe.mp4"))
    return tmp_path


def run(bundle: Path, device: str, out: str, **options: Any) -> Summary:
    fixed = {"runner": "openvino", "precision": "fp32", "workers": 2}
    return label(bundle, ["in"], Options(out=Path(out), device=device, **fixed | options))


def assert_same_rows(one: str, other: str) -> None:
    """Assert that two journals have the same header, and the same rows in any order."""
    header, same = read_header(Path(one)), read_header(Path(other))
    assert header is not None
    assert same is not None
    assert not header.differences(same)
    rows, others = read_rows(Path(one)), read_rows(Path(other))
    assert rows.keys() == others.keys()
    for key, row in rows.items():
        assert_same_label(row, others[key])
        assert without_scores(row) == without_scores(others[key])
        np.testing.assert_allclose(scores(row), scores(others[key]), atol=1e-5)


def without_scores(row: Row) -> Row:
    segments = [(start, end, name, 0.0) for start, end, name, _ in row.segments]
    top = [(name, 0.0) for name, _ in row.top]
    count = None if row.features is None else (0, row.features[1])
    return msgspec.structs.replace(row, score=None, top=top, segments=segments, features=count)


def scores(row: Row) -> list[float]:
    return [score for *_, score in (*row.top, *row.segments)]


def test_two_engines_give_the_rows_of_one(folder: Path, exported: Path) -> None:
    alone = run(exported, "cpu", "one.jsonl")
    both = run(exported, "cpu,cpu", "two.csv")
    assert_same_rows("one.jsonl", "two.jsonl")
    assert both.statuses == alone.statuses == {"ok": 7, "partial": 1, "failed": 2}
    assert [row.path for row in both.rows] == [row.path for row in alone.rows]
    assert Path("two.csv").exists()
    assert (both.todo, both.stopped) == (0, "")
    # A FIFO is known for what it is without any engine; the first videos are dealt out in turn.
    assert sum(both.stages.videos.values()) == 9
    assert both.stages.videos.keys() == {"cpu #1", "cpu #2"}
    assert all(both.stages.videos.values())
    assert (both.stages.engines, both.stages.workers) == (2, 2)
    assert both.stages.decode_s > 0
    assert both.stages.engine_s > 0
    assert 0 < both.stages.scale_s < both.stages.decode_s
    assert both.stages.gather_s > 0
    assert run(exported, "cpu", "two.jsonl").done == 0
    assert run(exported, "cpu,cpu", "one.jsonl").done == 0


def test_windows_features_and_captions_are_those_of_one_engine(folder: Path, exported: Path) -> None:
    wanted = {"window_s": 0.5, "stride_s": 0.25, "min_score": 0.4}
    for device, name in (("cpu", "one"), ("cpu,cpu", "two")):
        files = {"features": Path(f"{name}.npz"), "vtt": Path(f"{name}.vtt"), "annotate": Path(f"{name}.drawn")}
        run(exported, device, f"{name}.jsonl", **wanted, **files)
    assert_same_rows("one.jsonl", "two.jsonl")
    with np.load("one.npz") as one, np.load("two.npz") as two:
        assert one["paths"].tolist() == two["paths"].tolist()
        np.testing.assert_allclose(one["features"], two["features"], atol=1e-5)
        np.testing.assert_array_equal(one["start_s"], two["start_s"])
    for suffix in ("vtt", "drawn"):
        one_, two_ = ({str(p.relative_to(f)) for p in Path(f).rglob("*.*")} for f in (f"one.{suffix}", f"two.{suffix}"))
        assert one_ == two_
        assert len(one_) == 8


def test_auto_chooses_once_for_all_engines(folder: Path, exported: Path) -> None:
    said: list[str] = []
    summary = run(exported, "cpu,cpu", "out.jsonl", runner="auto", precision="auto", announce=said.append)
    assert summary.todo == 0
    assert "on cpu, cpu: 2 engines (the fastest here, in clips/s: " in said[0]


def test_what_cannot_be_loaded_is_said_with_the_device(folder: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cpu #1: unknown runner 'caffe'; allowed are auto, openvino, onnx"):
        run(exported, "cpu,cpu", "out.jsonl", runner="caffe")
    with pytest.raises(BundleError, match="cpu #1: nowhere is no bundle"):
        run(Path("nowhere"), "cpu,cpu", "out.jsonl")
    assert not Path("out.jsonl").exists()


def test_an_engine_has_a_decoder_at_least(folder: Path, exported: Path) -> None:
    summary = run(exported, "cpu,cpu", "out.jsonl", workers=1)
    assert summary.stages.workers == 2
    assert summary.todo == 0


class TestEngines:
    """What the two engines of a run do when it does not go as it should."""

    @pytest.fixture
    def engines(self, exported: Path) -> Iterator[Here | Engines]:
        asked = Load(bundle=os.fsencode(exported), device="cpu,cpu", runner="openvino", precision="fp32")
        with closing(load_engines(asked, ("cpu", "cpu"), 2)) as engines:
            yield engines

    def test_a_run_that_is_stopped_before_it_begins(self, folder: Path, exported: Path) -> None:
        stop = threading.Event()
        stop.set()
        summary = run(exported, "cpu,cpu", "out.jsonl", stop=stop)
        assert (summary.done, summary.todo, summary.stopped) == (0, 10, "interrupted")
        assert run(exported, "cpu,cpu", "out.jsonl").todo == 0

    def test_what_an_engine_raises_is_told(self, folder: Path, engines: Here | Engines) -> None:
        plan = make_plan(engines.loaded)
        wrong = msgspec.structs.replace(plan, size=msgspec.structs.replace(plan.size, width=32))
        told = r"cpu #\d ended: frames \(N, H, W, 3\) must be uint8 with \(64, 64, 3\) behind the first axis"
        with pytest.raises(EngineError, match=f"^no engine is left: {told}.*, {told}.*; what is done is written, the"):
            list(engines.label(discover(["in/climb", "in/jump"]).videos, Work(plan=wrong)))

    def test_closing_ends_all_processes(self, folder: Path, engines: Here | Engines) -> None:
        pids = children()
        assert len(pids) == 2
        stream = engines.label(discover(["in"]).videos, Work(plan=make_plan(engines.loaded)))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert not pids & children()

    def test_a_process_that_dies_while_it_loads(self, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = children()
        asked = Load(bundle=os.fsencode(exported), device="cpu,cpu", runner="openvino", precision="fp32")
        monkeypatch.setattr(sys, "path", [])  # it has the same, and finds nothing
        told = "cpu #1 ended: ModuleNotFoundError: No module named 'harec_deploy' while it loaded the bundle"
        with pytest.raises(EngineError, match=told):
            load_engines(asked, ("cpu", "cpu"), 2)
        assert children() == before
