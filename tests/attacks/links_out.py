"""A folder of videos with links that lead out of it: what lies outside must not turn up in the rows."""

import json
import os
from pathlib import Path

from tests.attacks.common import attack, held, run
from tests.attacks.tiny import tiny_bundle
from tests.media import make_video


def mount() -> str:
    """Label the folder, with and without --all-files."""
    Path("private/sub").mkdir(parents=True)
    make_video(Path("private/secret.mp4"), frames=10)
    make_video(Path("private/sub/more.mp4"), frames=10)
    Path("in").mkdir()
    make_video(Path("in/own.mp4"), frames=10)
    links = {"file.mp4": "private/secret.mp4", "folder": "private", "parent": ".", "passwd.mp4": "/etc/passwd"}
    for name, target in links.items():
        Path("in", name).symlink_to(Path(target).absolute())
    Path("in/self.mp4").symlink_to("self.mp4")
    os.mkfifo("in/fifo.mp4")
    bundle = tiny_bundle(Path("bundle")).folder
    for option in ((), ("--all-files",)):
        done = run("label", "in", "--bundle", bundle, "--restart", *option)
        rows = [json.loads(line) for line in Path("labels.jsonl").read_text().splitlines()[1:]]
        seen = {row["path"]: row["status"] for row in rows}
        held(seen == {"in/own.mp4": "ok", "in/fifo.mp4": "failed"}, f"rows are {seen}")
        held("passed over: 5 links" in done.stderr, f"links were not counted: {done.stderr}")
    return "five links counted and not followed, the FIFO failed, the video beside them labelled"


if __name__ == "__main__":
    attack(mount)
