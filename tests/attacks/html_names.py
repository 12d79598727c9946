"""File names, classes and messages that a browser would run, in the page that report writes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from tests.attacks.common import attack, held, run
from tests.attacks.tiny import tiny_bundle
from tests.media import make_video

NAMES = [
    "<script>alert(1)<%2Fscript>.mp4",
    "<img src=x onerror=alert(1)>.mp4",
    '" onmouseover="alert(1)" x=".mp4',
    "' onfocus='alert(1)' autofocus x='.mp4",
    "--><svg onload=alert(1)>.mp4",
    "{{rows}}{{policy}}.mp4",
    "&lt;b&gt;.mp4",
]
CLASSES = ["</style><script>alert(2)</script>", "javascript:alert(2)", "<iframe srcdoc=x>"]


class Reader(HTMLParser):
    """Collects the tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def mount() -> str:
    """Label such files with such classes and report on them; then with a journal that was forged."""
    bundle = tiny_bundle(Path("bundle"), classes=CLASSES).folder
    Path("in").mkdir()
    video = make_video(Path("v.mkv"), frames=10).read_bytes()
    for name in NAMES:
        Path("in", name).write_bytes(video)
    Path("in/<script>.mp4").write_text("no video")
    held(run("label", "in", "--bundle", bundle).returncode == 3, "the videos were not labelled")
    _check(Path("labels.jsonl"))
    header, *rows = Path("labels.jsonl").read_text().splitlines()
    nasty = "</td></script><script>alert(3)</script>"
    forged = json.loads(header) | {"variant": nasty, "runner": nasty, "decoder": nasty, "bundle": nasty}
    text = {"label": nasty, "status": nasty, "codec": nasty, "top": [[nasty, 0.5]], "segments": [[0, 1, nasty, 0.5]]}
    failed = {"label": None, "error": {"code": nasty, "message": nasty}}
    lines = [json.loads(row) | (text if place % 2 else failed) for place, row in enumerate(rows)]
    Path("forged.jsonl").write_text("\n".join(json.dumps(line) for line in [forged, *lines]) + "\n")
    _check(Path("forged.jsonl"))
    return "names, classes and a forged journal are only text on the page"


def _check(journal: Path) -> None:
    done = run("report", journal)
    held(done.returncode == 0, f"there is no page: {done.stderr}")
    page = journal.with_suffix(".html").read_text("utf-8")
    tags = Reader(page).tags
    held([tag for tag, _ in tags].count("script") == 1, "there is a foreign script")
    held(not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}, "there is a foreign tag")
    for tag, attributes in tags:
        handlers = [name for name in attributes if name.startswith("on") or name in ("srcdoc", "autofocus")]
        held(not handlers, f"<{tag}> has {handlers}")
        target = attributes.get("src") or attributes.get("href") or "#"
        held(target.startswith(("#", "data:image/", "data:,")), f"<{tag}> leads to {target[:60]}")
    held("&lt;script&gt;" in page, "the names are not on the page")
    held(re.search(r"default-src &#x27;none&#x27;|default-src 'none'", page), "the page has no policy")


if __name__ == "__main__":
    attack(mount)
