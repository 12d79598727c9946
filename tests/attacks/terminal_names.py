"""File names and classes that would command a terminal: colours, titles, cursor moves, text that runs backwards."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.attacks.common import ROOT, attack, held, refused, run
from tests.attacks.tiny import tiny_bundle
from tests.media import make_video

NAMES = [
    "a\x1b]0;owned\x07.mp4",
    "b\x1b[2J\x1b[H.mp4",
    "c\x9b31m.mp4",
    "d\rforged line.mp4",
    "e\nerror [usage]: forged.mp4",
    "f\u202egpj.mp4",
    "g\x08\x08\x08.mp4",
    "h[bold red]markup[blink].mp4",
    "i\x1bP+q544e\x1b\\.mp4",
]
FORBIDDEN = {"\x1b", "\x9b", "\x07", "\x08", "\u202e"}


def mount() -> str:
    """Label such files into a pipe and on a terminal, and load a bundle of such classes."""
    bundle = tiny_bundle(Path("bundle")).folder
    Path("in").mkdir()
    video = make_video(Path("v.mkv"), frames=10).read_bytes()
    for place, name in enumerate(NAMES):
        Path("in", name).write_bytes(video if place % 2 else b"no video")
    done = run("label", "in", "--bundle", bundle, "--table")
    text = done.stdout + done.stderr
    held(done.returncode == 3, f"the videos were not labelled: {text}")
    held(not FORBIDDEN & set(text), f"{sorted(FORBIDDEN & set(text))} reached the pipe")
    held("forged" in text and not any(line.startswith(("forged", "error [usage]")) for line in text.splitlines()), text)
    held("[bold red]markup[blink]" in text, "a name was taken for markup")
    shown = _on_a_terminal("label", "in", "--bundle", str(bundle), "--restart", "--table")
    held("owned" in shown and "\x1b]0;owned" not in shown, "the title of the terminal was changed")
    held(
        "\x1b[2J\x1b[H" not in shown and "\x9b" not in shown and "\u202e" not in shown, "a name commanded the terminal"
    )
    done = run("label", *(f"in/{name}/nothing" for name in NAMES), "--bundle", bundle)
    refused(done, 2, "no such file or folder")
    held(not FORBIDDEN & set(done.stderr), "a name in an error reached the terminal")
    spec = (bundle / "bundle.json").read_text()
    (bundle / "bundle.json").write_text(spec.replace('"red"', '"\\u001b]0;owned\\u0007"'))
    refused(run("inspect", bundle), 1, "unprintable")
    return f"{len(NAMES)} names are shown as escapes, a class with control characters refused"


def _on_a_terminal(*arguments: str) -> str:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "harec_deploy", *arguments]
    with subprocess.Popen(
        command, stdout=theirs, stderr=theirs, stdin=theirs, env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = bytearray()
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
            shown += part
        process.wait(timeout=60)
    os.close(ours)
    return shown.decode("utf-8", "replace")


if __name__ == "__main__":
    attack(mount)
