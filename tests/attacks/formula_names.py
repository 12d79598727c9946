"""File names and classes that a spreadsheet would run as formulas (CWE-1236)."""

import csv
import json
from pathlib import Path

from tests.attacks.common import attack, held, run
from tests.attacks.tiny import tiny_bundle
from tests.media import make_video

NAMES = [
    "=cmd|' C'!A0.mp4",
    "=1+1.mp4",
    "+1.mp4",
    "-1.mp4",
    "@SUM(A1).mp4",
    "\t=1.mp4",
    "\r=1.mp4",
    'a",=1+1,".mp4',
    "a\n=1.mp4",
]
CLASSES = ["=HYPERLINK(0)", "+red", "@blue"]


def mount() -> str:
    """Label such files with such classes, into a CSV, and read it as a spreadsheet does."""
    bundle = tiny_bundle(Path("bundle"), classes=CLASSES).folder.absolute()
    video = make_video(Path("v.mkv"), frames=10).read_bytes()
    for name in NAMES:
        Path(name).write_bytes(video)
    Path("=broken.mp4").write_text("no video")
    names = [*NAMES, "=broken.mp4"]
    done = run("label", "--bundle", bundle, "--out", "out.csv", *(f"./{name}" for name in names))
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()[1:]]
    held({row["path"] for row in rows} == set(names), f"the journal does not have the names as they are: {done.stderr}")
    held({row["label"] for row in rows} - {None} <= set(CLASSES), "the journal does not have the classes as they are")
    with Path("out.csv").open(newline="") as stream:
        table = list(csv.reader(stream))
    held(len(table) == 1 + len(names), f"{len(table)} lines")
    cells = [cell for line in table for cell in line]
    bad = [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    held(not bad, f"a spreadsheet would run {bad}")
    held(any(cell.startswith(("'=HYPERLINK", "'+red", "'@blue")) for cell in cells), "no class there")
    return f"{len(names)} names and the classes are text in the CSV, and exact in the journal"


if __name__ == "__main__":
    attack(mount)
