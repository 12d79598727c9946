"""Fuzz smoke: whatever a journal, a bundle or a model file holds, its reader returns or says one line, soon and small.

The budget is a number of examples and the order is fixed, so a run is the same everywhere. An example that was found
to break a reader stays here for ever as an ``@example`` or a test of its own.
"""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harec_deploy.bundle import Bundle, file_ref, load, read_safetensors
from harec_deploy.errors import HarecError
from harec_deploy.label.journal import read_header, read_rows
from harec_deploy.label.report import write_report
from harec_deploy.label.run import Options, label
from harec_deploy.onnxfile import has_external_data
from tests.attacks.tiny import FRAMES, SIDE, tiny_bundle
from tests.media import make_video

pytestmark = pytest.mark.slow

MAX_SECONDS = 2.0
MAX_BYTES = 512 << 20  # that a reader may add to the most that the process ever took
NO_FIXTURE_CHECK = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def budget(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=NO_FIXTURE_CHECK
    )


@contextmanager
def bounded() -> Iterator[None]:
    """Let only a HarecError of one line out of the block, within the limits of time and memory."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        yield
    except HarecError as error:
        assert str(error)  # noqa: PT017 - to return is as good as to refuse
    assert time.process_time() - start < MAX_SECONDS
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MAX_BYTES, f"{grown >> 20} MiB"


# What is done to the bytes of a file: (where as a share of the length, how, with what).
SPLICES = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["put", "insert", "cut", "double", "end"]),
        st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"[" * 50, b"\n", b'"'])),
    ),
    min_size=1,
    max_size=6,
)
Splices = list[tuple[float, str, bytes]]


def mutate(data: bytes, splices: Splices) -> bytes:
    """Return a damaged copy."""
    changed = bytearray(data)
    for share, how, new in splices:
        at = int(share * len(changed))
        if how == "put":
            changed[at : at + len(new)] = new
        elif how == "insert":
            changed[at:at] = new
        elif how == "cut":
            del changed[at : at + len(new)]
        elif how == "double":
            changed[at:at] = changed[at : at + 100]
        else:
            del changed[at:]
    return bytes(changed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle that has check clips, and a real journal of it."""
    import numpy as np

    folder = tmp_path_factory.mktemp("fuzz")
    clips = np.zeros((1, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    tiny_bundle(folder / "bundle", check={"clips": clips, "logits": np.zeros((1, 3), dtype=np.float32)})
    (folder / "videos").mkdir()
    for name in ("a.mp4", "b\n\udcff.mp4", "c.mkv"):
        make_video(folder / "video.mkv", frames=6).rename(folder / "videos" / name)
    (folder / "videos/d.mp4").write_text("no video")
    label(folder / "bundle", [str(folder / "videos")], Options(out=folder / "out.jsonl", runner="openvino"))
    assert len((folder / "out.jsonl").read_bytes().splitlines()) == 1 + 4
    return folder


def read_journal(path: Path) -> None:
    """Read a journal as a resumed run and as the report do."""
    with bounded():
        if read_header(path) is not None:
            read_rows(path)
    with bounded():
        write_report(path, path.with_suffix(".html"), root=path.parent, thumbnails=0)


class TestBytes:
    """Files with damaged bytes."""

    @budget(2500)
    @given(splices=SPLICES)
    def test_journal(self, place: Path, splices: Splices) -> None:
        path = place / "damaged.jsonl"
        path.write_bytes(mutate((place / "out.jsonl").read_bytes(), splices))
        read_journal(path)

    @budget(2500)
    @given(splices=SPLICES)
    def test_bundle_json(self, place: Path, splices: Splices) -> None:
        good = (place / "bundle/bundle.json").read_bytes()
        try:
            (place / "bundle/bundle.json").write_bytes(mutate(good, splices))
            with bounded():
                load(place / "bundle")
        finally:
            (place / "bundle/bundle.json").write_bytes(good)

    @budget(2500)
    @given(splices=SPLICES)
    def test_safetensors(self, place: Path, splices: Splices) -> None:
        path = place / "damaged.safetensors"
        path.write_bytes(mutate((place / "bundle/weights.safetensors").read_bytes(), splices))
        with bounded():
            for _, values in read_safetensors(path):
                values.sum()

    @budget(5000)
    @given(splices=SPLICES, graph=st.sampled_from(["encoder", "head"]))
    def test_onnx(self, place: Path, splices: Splices, graph: str) -> None:
        data = mutate((place / f"bundle/onnx-fp32/{graph}.onnx").read_bytes(), splices)
        try:
            with bounded():
                has_external_data(data)
        except ValueError as error:  # what load makes a BundleError of
            assert "byte" in str(error) or "messages" in str(error)  # noqa: PT017 - most damage is not seen here

    @budget(2500)
    @given(splices=SPLICES)
    def test_check_clips(self, place: Path, splices: Splices) -> None:
        path = place / "bundle/damaged.npz"
        path.write_bytes(mutate((place / "bundle/check.npz").read_bytes(), splices))
        bundle = load(place / "bundle")
        damaged = msgspec.structs.replace(bundle.spec, check=file_ref(bundle.folder, path))
        with bounded():
            Bundle(bundle.folder, damaged).check_clips()


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", "..", "/", "a\0b", "x" * 3000, "../" * 50, "onnx-fp32", "weights.safetensors", "\u202e\x1b"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*at, key)
        yield from places_in(item, (*at, key))


def replaced(value: Any, where: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with another value at one place."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = new
    return copy


class TestStructure:
    """Valid JSON with values of other types and beyond all limits."""

    @budget(3000)
    @given(data=st.data(), new=JSON)
    def test_journal(self, place: Path, data: st.DataObject, new: Any) -> None:
        lines = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
        where = data.draw(st.sampled_from(list(places_in(lines))))
        path = place / "changed.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in replaced(lines, where, new)))
        read_journal(path)

    @budget(3000)
    @given(data=st.data(), new=JSON)
    def test_bundle_json(self, place: Path, data: st.DataObject, new: Any) -> None:
        good = (place / "bundle/bundle.json").read_bytes()
        spec = json.loads(good)
        where = data.draw(st.sampled_from(list(places_in(spec))))
        try:
            (place / "bundle/bundle.json").write_text(json.dumps(replaced(spec, where, new)))
            with bounded():
                bundle = load(place / "bundle")
                bundle.check_clips()
                [bundle.fingerprint(name) for name in bundle.spec.variants]
        finally:
            (place / "bundle/bundle.json").write_bytes(good)

    @budget(3000)
    @given(data=st.data(), new=JSON)
    @example(data=None, new={})
    def test_safetensors(self, place: Path, data: st.DataObject | None, new: Any) -> None:
        good = (place / "bundle/weights.safetensors").read_bytes()
        length = int.from_bytes(good[:8], "little")
        header = json.loads(good[8 : 8 + length])
        changed = new
        if data is not None:
            changed = replaced(header, data.draw(st.sampled_from(list(places_in(header)))), new)
        text = json.dumps(changed).encode()
        path = place / "changed.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + good[8 + length :])
        with bounded():
            for _, values in read_safetensors(path):
                values.sum()


DEEP = "[" * 100_000 + "]" * 100_000


class TestDepth:
    """JSON inside JSON without end, which hypothesis would not build."""

    def test_bundle_json(self, place: Path, tmp_path: Path) -> None:
        text = (place / "bundle/bundle.json").read_text()
        (tmp_path / "bundle.json").write_text(
            text.replace('"training": {', f'"training": {{"deep": {DEEP}, ').replace(", }", "}")
        )
        with pytest.raises(HarecError, match="is damaged or was edited"):
            load(tmp_path)

    def test_safetensors(self, tmp_path: Path) -> None:
        text = f'{{"a": {DEEP}}}'.encode()
        (tmp_path / "deep").write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(HarecError, match="is no safetensors file"):
            list(read_safetensors(tmp_path / "deep"))

    @pytest.mark.parametrize("line", [0, 1])
    def test_journal(self, place: Path, tmp_path: Path, line: int) -> None:
        lines = (place / "out.jsonl").read_text().splitlines()
        lines[line] = f'{{"deep": {DEEP}, {lines[line][1:]}'
        (tmp_path / "deep.jsonl").write_text("\n".join(lines) + "\n")
        read_journal(tmp_path / "deep.jsonl")
