"""Table B of the test matrix: damaged videos. The id of a row stands in the test's id.

All are labelled in one run by one child, each with a good video behind it, which must come out as in a run of its own.

What other tests cover of the table at a lower level, on the decoder alone: tests/test_packets.py (B2
test_cut_mp4, B5 test_damage_gives_the_same_frames_every_time, B7 test_cut_mkv_is_seen_by_its_duration, B8
test_header_that_promises_more), tests/test_decode.py (B3 test_refusals, B14 test_size_changes_in_mid_stream).
B3's other half, a decoder that dies of such a file: tests/test_workers.py::test_a_fault_costs_one_video[SEGV].
"""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet

from harec_deploy.decode import Size, VideoInfo
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import VideoError
from harec_deploy.label.child import Limits
from tests.matrix.files import patch_box, promise_frames, remux
from tests.matrix.run import Made, Table, assert_same_label, label_files, label_table
from tests.media import cut, flip_bytes, make_resized, make_video, read_index

SMALL = Limits(memory_bytes=512 << 20)  # of address space, of which the memory in use is a part
SIZE = Size(width=64, height=48)
TEN_YEARS_MS = 10 * 365 * 86400 * 1000
NO_FASTSTART = {"movflags": "write_colr"}


def cut_in_first_frame(path: Path) -> None:
    data = make_video(path).read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4 + 30])


def hole(path: Path, length: int = 64 << 10) -> Path:
    """Overwrite the middle with zeros."""
    data = path.read_bytes()
    assert len(data) > 3 * length
    start = (len(data) - length) // 2
    path.write_bytes(data[:start] + bytes(length) + data[start + length :])
    return path


def huge_box(path: Path, size: int) -> None:
    """Give the header of an mp4 a size of 64 bits."""
    data = make_video(path).read_bytes()
    place = data.index(b"moov") - 4
    path.write_bytes(data[:place] + b"\0\0\0\1moov" + size.to_bytes(8, "big") + data[place + 8 :])


def duration(path: Path, milliseconds: int) -> None:
    """Let the headers of an mp4 or mkv say another duration."""
    make_video(path, frames=30)
    if path.suffix == ".mp4":
        for box, offset in (("mvhd", 16), ("tkhd", 20), ("mdhd", 16)):
            patch_box(path, box, offset, min(milliseconds, 0xFFFFFFFE))
        return
    data = path.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # the element Duration, of 8 bytes
    path.write_bytes(data[:place] + struct.pack(">d", milliseconds) + data[place + 8 :])


def without_key(path: Path) -> None:
    """Write a video that begins in the middle of a GOP of 12 frames."""
    source = make_video(path.with_name("source.mp4"), frames=40, gop=12)
    remux(source, path, lambda index, _: index > 0)
    source.unlink()


def timed(times: Callable[[int], int | None]) -> Callable[[Path], None]:
    """Return what writes a Matroska file of 40 frames of 25 a second, shown at other times, in 1/12800 s."""

    def change(index: int, packet: Packet) -> None:
        packet.pts, packet.dts = times(index), -(1 << 20)  # which Matroska does not store

    def write(path: Path) -> None:
        source = make_video(path.with_name("source.mp4"), frames=40, b_frames=0)
        remux(source, path, change, avoid_negative_ts="disabled")
        source.unlink()

    return write


def joined(path: Path) -> None:
    """Write two recordings one behind the other; the clock of the second starts anew, half a frame apart."""
    make_video(path, frames=20, b_frames=0)
    first = path.read_bytes()
    source = make_video(path.with_name("source.mp4"), frames=20, b_frames=0, seed=1)

    def later(_: int, packet: Packet) -> None:
        packet.pts, packet.dts = packet.pts + 256, packet.dts + 256

    remux(source, path, later)
    source.unlink()
    path.write_bytes(first + path.read_bytes())


BIG = {"frames": 60, "width": 640, "height": 480}
TABLE: dict[str, Made] = {
    "B1": ("clip.mp4", lambda path: cut(make_video(path, muxer=NO_FASTSTART), 0.5)),
    "B2": ("clip.mp4", lambda path: cut(make_video(path), 0.9)),
    "B3": ("clip.mp4", cut_in_first_frame),
    "B5 every 97": ("clip.mp4", lambda path: flip_bytes(make_video(path, frames=30), every=97)),
    "B5 here and there": ("clip.mp4", lambda path: flip_bytes(make_video(path, gop=1, b_frames=0), every=20_000)),
    "B6": ("clip.mp4", lambda path: hole(make_video(path, **BIG))),
    "B7 mkv": ("clip.mkv", lambda path: cut(make_video(path, frames=100), 0.6)),
    "B7 ts": ("clip.ts", lambda path: cut(make_video(path, frames=100), 0.6)),
    "B8 says 50 has 20": ("clip.avi", lambda path: promise_frames(make_video(path, codec="mjpeg", frames=20), 50)),
    "B8 says 20 has 50": ("clip.avi", lambda path: promise_frames(make_video(path, codec="mjpeg", frames=50), 20)),
    "B9 stsz": ("clip.mp4", lambda path: patch_box(make_video(path), "stsz", 8, 0xFFFFFFF0)),
    "B9 stsz equal": (
        "clip.mp4",
        lambda path: patch_box(patch_box(make_video(path), "stsz", 8, 1 << 30), "stsz", 4, 1),
    ),
    "B9 stts": ("clip.mp4", lambda path: patch_box(make_video(path), "stts", 4, 0xFFFFFFF0)),
    "B9 stsc": ("clip.mp4", lambda path: patch_box(make_video(path), "stsc", 4, 0xFFFFFFF0)),
    "B9 ctts": ("clip.mp4", lambda path: patch_box(make_video(path), "ctts", 4, 0xFFFFFFF0)),
    "B9 2^63": ("clip.mp4", lambda path: huge_box(path, 1 << 63)),
    "B9 2^63-1": ("clip.mp4", lambda path: huge_box(path, (1 << 63) - 1)),
    "B10": ("clip.mp4", lambda path: patch_box(make_video(path), "stsz", 8, 0)),
    "B11 mp4": ("clip.mp4", without_key),
    "B11 mkv": ("clip.mkv", without_key),
    "B11 ts": ("clip.ts", without_key),
    "B12 equal": ("clip.mkv", timed(lambda index: 0)),
    "B12 none": ("clip.h264", lambda path: make_video(path, frames=40, b_frames=0)),
    "B12 back": ("clip.mkv", timed(lambda index: 512 * (39 - index))),
    "B12 joined": ("clip.ts", joined),
    "B12 negative": ("clip.mkv", timed(lambda index: 512 * (index - 5))),
    "B12 one hour": ("clip.mkv", timed(lambda index: 512 * index + 3600 * 12800)),
    "B13 0 mp4": ("clip.mp4", lambda path: duration(path, 0)),
    "B13 10 years mp4": ("clip.mp4", lambda path: duration(path, TEN_YEARS_MS)),
    "B13 0 mkv": ("clip.mkv", lambda path: duration(path, 0)),
    "B13 10 years mkv": ("clip.mkv", lambda path: duration(path, TEN_YEARS_MS)),
    "B14": ("clip.ts", lambda path: make_resized(path, [(160, 120), (96, 64)])),
}
FAILED = {
    "B1": {"not_video", "truncated"},
    "B3": {"truncated"},
    "B5 every 97": {"corrupt"},  # hardly a frame is whole
    "B9 stsz": {"not_video"},
    "B9 stsz equal": {"too_short"},
    "B9 stts": {"out_of_memory"},  # FFmpeg's own limit of one allocation
    "B9 stsc": {"not_video"},
    "B9 ctts": {"not_video"},
    "B9 2^63": {"corrupt"},
    "B9 2^63-1": {"corrupt"},
    "B10": {"too_short"},
}
# Matroska has no count of frames, but a duration; what it promises and does not hold makes a video partial.
PARTIAL = {"B2", "B5 here and there", "B6", "B7 mkv", "B8 says 50 has 20", "B13 10 years mkv"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "in"


@pytest.fixture(scope="module")
def table(folder: Path, exported: Path) -> Table:
    """The rows of the table, labelled in little memory."""
    return label_table(exported, folder, TABLE, all_files=True, limits=SMALL)


@pytest.mark.parametrize("row", FAILED)
def test_no_label(table: Table, row: str) -> None:
    table.failed(row, *FAILED[row])


@pytest.mark.parametrize("row", sorted(PARTIAL))
def test_a_label_of_what_is_there(table: Table, row: str) -> None:
    got = table.labelled(row, "partial")
    if got.frames_expected is not None:
        assert got.frames_decoded is not None
        assert got.frames_decoded < got.frames_expected


@pytest.mark.parametrize("row", [row for row in TABLE if row not in PARTIAL and row not in FAILED])
def test_a_label(table: Table, row: str) -> None:
    table.labelled(row)


def frames_of(path: Path, count: int = 20) -> list[int]:
    """Return the indices that the frames of a clip carry, as the run takes them."""

    def times(info: VideoInfo) -> list[float]:
        return [(place + 0.5) * info.duration_s / count for place in range(count)]

    return [read_index(pixels) for pixels in PyAVDecoder().frames(path, times, SIZE).pixels]


def test_b2_a_plain_decoder_may_not_notice(folder: Path, table: Table) -> None:
    # With threads FFmpeg ends without an error, with none it raises one: what a row says depends on neither.
    with av.open(str(folder / "B2" / "clip.mp4")) as container:
        container.streams.video[0].thread_type = "AUTO"
        assert len(list(container.decode(video=0))) < 60
    row = table.rows["B2"]
    assert row.frames_expected == 60
    assert row.frames_decoded is not None
    assert row.frames_decoded < 60


@pytest.mark.parametrize("row", ["B2", "B5 here and there", "B6", "B7 mkv"])
def test_b2_b5_workers_and_repetition_change_nothing(
    table: Table, folder: Path, exported: Path, tmp_path: Path, row: str
) -> None:
    for workers in (1, 8):
        out = tmp_path / f"{workers}.jsonl"
        (again, good) = label_files(exported, [str(folder / row)], out, workers=workers).rows
        assert_same_label(again, table.rows[row])
        assert_same_label(good, table.good)
        assert (again.frames_decoded, again.frames_expected) == (
            table.rows[row].frames_decoded,
            table.rows[row].frames_expected,
        )


def test_b4_a_file_cut_at_every_byte(tmp_path: Path) -> None:
    path = make_video(tmp_path / "whole.mp4", frames=16, width=32, height=32, options={"crf": "30"})
    data, broken = path.read_bytes(), tmp_path / "cut.mp4"
    assert 2000 < len(data) < 4000
    outcomes = set()
    for length in range(len(data)):
        broken.write_bytes(data[:length])
        try:
            got = PyAVDecoder().frames(broken, lambda info: np.linspace(0, info.duration_s, 8), SIZE)
        except VideoError as error:
            outcomes.add(error.kind)
            continue
        outcomes.add("partial")
        assert got.bad_packets or not got.info.complete, f"cut at {length}, and all seems to be there"
    assert {"empty", "not_video", "truncated", "partial"} <= outcomes
    assert len(PyAVDecoder().frames(path, [0.0], SIZE).pixels) == 1


def test_b7_b8_both_numbers_are_in_the_row(table: Table) -> None:
    def numbers(row: str) -> tuple[int | None, int | None]:
        return table.rows[row].frames_expected, table.rows[row].frames_decoded

    assert numbers("B8 says 50 has 20") == (50, 20)
    assert numbers("B8 says 20 has 50") == (20, 50)
    for row in ("B7 mkv", "B7 ts"):  # neither says how many there should be; of a ts nothing else does either
        expected, decoded = numbers(row)
        assert expected is None
        assert decoded is not None
        assert 30 < decoded < 90


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_b11_begins_with_the_first_frame_that_can_be_decoded(folder: Path, suffix: str) -> None:
    path = folder / f"B11 {suffix}" / f"clip.{suffix}"
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.is_keyframe for packet in packets[:12]] == [False] * 11 + [True]
    assert frames_of(path) == [*[12] * 6, 13, *range(15, 40, 2)]


@pytest.mark.parametrize("row", ["B12 equal", "B12 none", "B12 back"])
def test_b12_frames_are_told_by_their_order(folder: Path, row: str) -> None:
    assert frames_of(folder / row / TABLE[row][0]) == list(range(1, 40, 2))


def test_b12_joined_recordings_are_seen_one_after_the_other(folder: Path) -> None:
    assert frames_of(folder / "B12 joined" / "clip.ts") == [*range(1, 20, 2), *range(1, 20, 2)]


def test_b12_the_times_are_what_they_should_be(folder: Path) -> None:
    def times(row: str) -> list[int | None]:
        with av.open(str(folder / row / TABLE[row][0])) as container:
            return [packet.pts for packet in container.demux(video=0) if packet.size]

    assert set(times("B12 equal")) == {0}
    assert set(times("B12 none")) == {None}
    assert times("B12 back") == list(range(1560, -1, -40))
    assert times("B12 one hour")[:2] == [3_600_000, 3_600_040]
    joined = times("B12 joined")
    assert len(set(joined)) == 40
    assert joined[20] < joined[19]


def test_b13_the_duration_is_that_of_the_packets(table: Table, folder: Path) -> None:
    for row in (row for row in TABLE if row.startswith("B13")):
        assert table.rows[row].duration_s == pytest.approx(1.2)
        assert table.rows[row].label == table.rows["B13 0 mp4"].label
    with av.open(str(folder / "B13 10 years mkv" / "clip.mkv")) as container:
        assert container.duration == TEN_YEARS_MS * 1000


# B15: a file that once brought the decoder down is kept in tests/data, and replayed for ever.

CRASHES = sorted((Path(__file__).parents[1] / "data").glob("crash-*"))
SEEDS = [
    *(("libx264", suffix) for suffix in (".mp4", ".mkv", ".ts", ".avi", ".flv")),
    *[("mpeg4", ".avi"), ("mpeg2video", ".mpg"), ("libvpx", ".webm"), ("mjpeg", ".mov"), ("libx265", ".mp4")],
]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Return ``data`` after a few accidents, most of them near its beginning, where the headers are."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        place = int(len(changed) * dice.random() ** dice.choice([1, 4]))
        length = dice.choice([1, 1, 2, 4, 16, 256])
        match dice.randrange(5):
            case 0:
                changed[place : place + length] = dice.randbytes(length)
            case 1:
                changed[place : place + length] = dice.choice([b"\0", b"\xff", b"\x7f"]) * length
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place : place + 1] = (
                    bytes([changed[place] ^ 1 << dice.randrange(8)]) if changed[place:] else b""
                )
    return bytes(changed)


def test_b15_no_mutation_brings_the_decoder_down(exported: Path, tmp_path: Path) -> None:
    dice = random.Random(15)
    folder = tmp_path / "in"
    folder.mkdir()
    for codec, suffix in SEEDS:
        seed = make_video(folder / f"seed{suffix}", codec=codec, frames=30).read_bytes()
        for number in range(20):
            (folder / f"{codec}{number:02d}{suffix}").write_bytes(mutated(seed, dice))
    for path in CRASHES:
        (folder / path.name).write_bytes(path.read_bytes())
    summary = label_files(exported, [str(folder)], tmp_path / "out.jsonl", all_files=True, workers=2)
    assert len(summary.rows) >= 200
    assert summary.statuses["failed"] > 20  # the accidents are bad enough
    assert summary.statuses["ok"] + summary.statuses["partial"] > 20  # and not too bad to get at the decoder
    lost = {row.path: row.error for row in summary.rows if row.error and row.error["code"] in LOST}
    assert lost == {}
    for row in summary.rows:
        assert (row.label is None) == (row.status == "failed")
        assert row.status == "failed" or row.frames_decoded


LOST = {"decoder_crashed", "timeout", "out_of_memory"}
