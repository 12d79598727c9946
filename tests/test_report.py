"""The report: everything about a run is on the page, nothing of it runs, and nothing leaves the page."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from harec_deploy.errors import VIDEO_ERRORS, OutputError, UsageError
from harec_deploy.label.report import write_report
from harec_deploy.label.run import Options, label

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """A page taken apart; a tag that is not closed where it should be fails the test."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.script = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.script += data
        elif self._open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, exported: Path, videos: Path) -> Path:
    """A folder with labelled videos in it, some of them bad or with hostile names, and their journal."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(videos, folder / "in")
    shutil.copy(videos / "climb" / "v_climb_g01_c01.mp4", folder / "in" / HOSTILE)
    shutil.copy(videos / "climb" / "v_climb_g01_c01.mp4", folder / "in" / "turn\u202egpj\n{{rows}}.mp4")
    (folder / "in" / "bad.mp4").write_text("no video")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        label(exported, ["in"], Options(out=Path("out.jsonl"), runner="openvino", precision="fp32"))
    return folder


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def report(folder: Path, **options: Any) -> Page:
    write_report(folder / "out.jsonl", folder / "out.html", **{"root": folder} | options)
    return Page((folder / "out.html").read_text("utf-8"))


def rewrite(folder: Path, change: dict[str, Any], *, rows: int = 9, copies: int = 1) -> None:
    """Put ``change`` into the first ``rows`` rows of the journal, and write the rows ``copies`` times."""
    header, *old = (folder / "out.jsonl").read_text().splitlines()
    new = [json.loads(row) | (change if place < rows else {}) for place, row in enumerate(old)]
    more = [row | {"path": f"{copy}/{row['path']}", "path_b64": None} for copy in range(1, copies) for row in new]
    many = [json.dumps(row) for row in [*new, *more]]
    (folder / "out.jsonl").write_text("\n".join([header, *many]) + "\n")


def test_everything_about_the_run_is_on_the_page(folder: Path) -> None:
    page = report(folder)
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == 9
    assert len(page.all("tr")) == 1 + 9
    for told in ("out.jsonl", "onnx-fp32", "openvino", "8ok", "0partial", "1failed", VIDEO_ERRORS["not_video"]):
        assert told in page.text
    for row in rows:
        assert row["label"] is None or f"{row['label']}{row['score']:.3f}" in page.text
        assert not row["path"].isprintable() or row["path"] in page.text
    assert "in/bad.mp4: no video container" in page.text
    assert [h["id"] for h in page.all("h2")] == "classes scores stages failures uncertain galleries all".split()
    facts = json.loads((folder / "out.summary.json").read_text())
    assert facts["bound_by"] in page.text
    assert f"labelled 9 in {facts['stages']['wall_s']:.1f} s: {facts['videos_per_s']:.1f} videos/s" in page.text
    assert len(page.all("img")) == 8 * 3 + 8
    assert all(image["alt"] for image in page.all("img"))


@pytest.mark.parametrize("text", [None, "", "{}", "[[[", '{"done":1,"videos_per_s":"<b>","stages":{}}'])
def test_without_a_summary_the_page_tells_no_times(folder: Path, text: str | None) -> None:
    path = folder / "out.summary.json"
    path.unlink() if text is None else path.write_text(text)
    assert [h["id"] for h in report(folder).all("h2")] == "classes scores failures uncertain galleries all".split()


def test_pictures_are_frames_of_the_video_in_its_shape(folder: Path) -> None:
    source = (report(folder).all("img")[0]["src"] or "").removeprefix("data:image/jpeg;base64,")
    with av.open(io.BytesIO(base64.b64decode(source)), format="jpeg_pipe") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (156, 208, 3)
    assert np.ptp(picture) > 200


def test_the_page_needs_nothing_from_outside(folder: Path) -> None:
    page = report(folder)
    text = (folder / "out.html").read_text("utf-8")
    assert "http://" not in text
    assert "https://" not in text
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], f"<{tag}> has a handler"
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith(("#", "data:"))
    assert "@import" not in text
    assert "url(" not in text


def test_the_policy_allows_the_pages_own_script_only(folder: Path) -> None:
    page = report(folder)
    (policy,) = (meta["content"] or "" for meta in page.all("meta") if "http-equiv" in meta)
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert page.all("script") == [{}]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_hostile_names_and_labels_are_only_text(folder: Path) -> None:
    nasty = "</td><script>alert(1)</script>\"'&amp;"
    rewrite(folder, {"label": nasty, "codec": nasty, "status": nasty, "top": [[nasty, 0.5]]}, rows=5)
    page = report(folder)
    assert len(page.all("script")) == 1
    assert page.text.count(nasty) >= 5 * 3
    assert HOSTILE in page.text
    assert r"turn\u202egpj\n{{rows}}.mp4" in page.text
    assert "\u202e" not in page.text


@pytest.mark.parametrize(
    "change",
    [
        {"score": 1e300, "top": [["a", -1e300]], "duration_s": 1e308, "fps": 1e308},
        {"score": None, "top": [], "duration_s": None, "fps": None, "width": None, "height": None, "codec": None},
        {"width": 10**30, "height": -3, "frames_decoded": -1},
        {"path": "a\0b"},
        {"path": "long/" + "x" * 5000},
        {"error": {}},
        {"segments": [[5.0, -1e308, "a", 9.0], [0.0, 0.0, "b", 0.5]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_value_of_a_journal_stops_the_report(folder: Path, change: dict[str, Any]) -> None:
    rewrite(folder, change)
    assert len(report(folder).all("tr")) >= 2


def test_videos_that_are_gone_or_changed_are_said_to_be(folder: Path) -> None:
    (folder / "in" / HOSTILE).unlink()
    (folder / "in/climb/v_climb_g01_c01.mp4").write_text("other")
    page = report(folder)
    assert page.text.count("not found") == 2
    assert page.text.count("changed since it was labelled") == 2
    assert len(page.all("img")) == 6 * 3 + 6
    assert report(folder, root=folder / "in").text.count("not found") == 2 * 8


def test_number_of_thumbnails(folder: Path) -> None:
    classes = {json.loads(line).get("label") for line in (folder / "out.jsonl").read_text().splitlines()[1:]} - {None}
    assert len(report(folder, thumbnails=1).all("img")) == 8 * 3 + len(classes)
    assert report(folder, thumbnails=0).all("img") == []


def test_segments_are_drawn(folder: Path) -> None:
    rewrite(folder, {"segments": [[0.0, 0.5, "run", 0.9], [0.5, 1.2, "swim", 0.8]]}, rows=1)
    page = report(folder)
    assert "0.5 to 1.2 s: swim, 0.800" in page.text
    assert "1 video with segments" in page.text


def test_a_long_journal_is_cut_and_says_so(folder: Path) -> None:
    rewrite(folder, {}, copies=250)
    page = report(folder, thumbnails=0)
    assert len(page.all("tr")) == 1 + 2000
    assert "The first 2,000 rows; 250 more are in the journal." in page.text


def test_a_journal_without_rows_makes_a_page(folder: Path) -> None:
    journal = folder / "out.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    assert "No video has a label." in report(folder).text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"journal": "nowhere.jsonl"}, UsageError, "nowhere.jsonl: no such journal; make it with harec-deploy label"),
        ({"journal": "in/bad.mp4"}, OutputError, "bad.mp4 is no journal of harec-deploy"),
        ({"journal": "empty"}, OutputError, "empty is no journal of harec-deploy: it has no whole line"),
        ({"journal": "in"}, OutputError, "in is no journal of harec-deploy"),
        ({"out": "out.jsonl"}, UsageError, "out.jsonl is the journal itself"),
        ({"out": "nowhere/out.html"}, UsageError, "there is no folder"),
        ({"out": "in"}, OutputError, "in cannot be written: Is a directory"),
        ({"root": Path("nowhere")}, UsageError, "--root nowhere: no such folder"),
        ({"thumbnails": -1}, UsageError, "--max-thumbnails -1: allowed are 0 and more"),
    ],
)
def test_mistakes_are_told(folder: Path, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    (folder / "empty").touch()
    places = {"journal": "out.jsonl", "out": "out.html"} | arguments
    before = (folder / "out.jsonl").read_bytes()
    with pytest.raises(error, match=re.escape(message)):
        write_report(
            folder / places["journal"],
            folder / places["out"],
            root=arguments.get("root", folder),
            thumbnails=arguments.get("thumbnails", 1),
        )
    assert (folder / "out.jsonl").read_bytes() == before
    assert not (folder / "out.html").exists()
    assert not list(folder.glob(".*.tmp"))


def test_the_command_writes_beside_the_journal(folder: Path) -> None:
    command = [sys.executable, "-m", "harec_deploy", "report", "out.jsonl", "--max-thumbnails", "0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "written to out.html\n")
    assert (folder / "out.html").stat().st_size > 5000


def browse(page: Path, tmp_path: Path, *more: str) -> str:
    """Return the page as headless Chromium has it after its scripts ran."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium, to see the page in a real browser")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1200,2000 --dump-dom"
    ).split()
    command = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", *more, str(page)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


def test_a_browser_shows_the_page_and_runs_only_its_script(folder: Path, tmp_path: Path) -> None:
    report(folder)
    page, picture = folder / "out.html", tmp_path / "page.png"
    foreign = "<script>document.title = 'foreign'</script><img src=x onerror=\"document.title = 'foreign'\">"
    page.write_text(page.read_text("utf-8").replace("</body>", f"{foreign}</body>"), "utf-8")
    shown = browse(page, tmp_path, f"--screenshot={picture}")
    assert ">9 of 9 rows shown</output>" in shown
    assert '<th scope="col" class="number"><button type="button">score</button></th>' in shown
    assert "<title>out.jsonl: labelling report</title>" in shown
    with av.open(str(picture)) as container:
        pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert pixels.shape == (2000, 1200, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).shape[0] > 1000  # thumbnails were drawn, not a blank page


def test_a_browser_filters_and_sorts(folder: Path, tmp_path: Path) -> None:
    report(folder, thumbnails=0)
    page = folder / "out.html"
    hand = """<script>
        document.querySelectorAll("thead button")[2].click();  // by score
        const filter = document.getElementById("filter");
        filter.value = "IN/ .avi";
        filter.dispatchEvent(new Event("input"));
    </script>"""
    text = re.sub(r"<meta http-equiv.*>", "", page.read_text("utf-8"))  # or the hand would not be let in
    page.write_text(text.replace("</body>", f"{hand}</body>"), "utf-8")
    shown = browse(page, tmp_path)
    assert ">3 of 9 rows shown</output>" in shown
    assert '<th scope="col" class="number" aria-sort="ascending"><button type="button">score</button></th>' in shown
    rows = re.findall(r'<tr data-status="\w+"( hidden="")?><th scope="row">(.*?)</th>.*?</tr>', shown)
    assert [name for hidden, name in rows if hidden == ""] == [name for _, name in rows if name.endswith(".avi")]
    scores = [float(value) for value in re.findall(r'<td class="number" data-v="(0\.\d+)">0\.\d{3}</td>', shown)]
    assert len(scores) == 8
    assert scores == sorted(scores)
    assert rows[-1][1] == "in/bad.mp4"  # it has no score
