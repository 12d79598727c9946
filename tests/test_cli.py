"""The command line: quick to start, light to import, one line for a mistake."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from harec_deploy import errors
from harec_deploy.cli.console import run_app
from harec_deploy.errors import HarecError, VideoError
from tests.conftest import write_bundle
from tests.media import Clip, make_video

HEAVY = ("torch", "torchvision", "onnxruntime", "openvino", "av", "onnx", "numpy", "lightning", "matplotlib")


def run(*arguments: str, module: str = "harec_deploy") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["harec_deploy", "training"])
def test_help_is_quick_and_imports_nothing_heavy(module: str) -> None:
    # What the slowest of many starts on a busy machine takes is not the program's doing: the fastest of five counts.
    times, bare = [], []
    for _ in range(5):
        start = time.perf_counter()
        assert run("--help", module=module).returncode == 0
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import typer"], check=True)
        bare.append(time.perf_counter() - start)
    assert min(times) < max(0.3, 3 * min(bare))  # or three times what the command line's package takes alone
    code = f"import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module({module!r}, run_name='__main__')\n"
    code += f"except SystemExit: print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    assert out.splitlines()[-1] == "[]"


def test_importing_the_package_is_light() -> None:
    code = f"import sys, harec_deploy; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_public_names_are_there() -> None:
    import harec_deploy

    assert all(getattr(harec_deploy, name) for name in harec_deploy.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'lable'"):
        harec_deploy.lable  # noqa: B018


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["label", "nowhere", "-b", "x"], 2, "error [usage]: nowhere: no such file or folder"),
        (["label", "{videos}", "-b", "nowhere", "-o", "{tmp}/o.jsonl"], 1, "error [bad_bundle]: nowhere is no bundle"),
        (["inspect", "{videos}"], 1, "is no bundle: bundle.json cannot be read (No such file or directory)"),
        (["label", "{videos}", "-b", "x", "-o", "o.xyz"], 2, "the suffix gives the form; allowed are .jsonl, .csv"),
        (["label", "{videos}"], 2, "Missing option"),
        (
            ["label", "{videos}", "-b", "x", "--workers", "two"],
            2,
            "--workers two: allowed are auto, or a number",
        ),
        (["label", "{videos}", "-b", "x", "--window", "4x"], 2, "'4x' is no length of time; allowed are such as 4s"),
        (["label", "{videos}", "-b", "x", "--shard", "3/2"], 2, "--shard 3/2: allowed are i/n with 1 <= i <= n"),
        (["label", "{videos}", "-b", "x", "--device", "cpu,cuda:9"], 2, "device cuda:9 is not here: there is cpu"),
        (["labe"], 2, "No such command"),
        (["export", "nowhere"], 1, "error [bad_bundle]: nowhere is no bundle"),
        (["export", "x", "--workspace-gib", "1"], 2, "--workspace-gib is about plans: add --tensorrt, or leave it out"),
        (["export", "x", "--decoder", "auto"], 2, "--decoder is about plans: add --tensorrt, or leave it out"),
        (["export", "x", "--runner", "torch", "--lstm", "op"], 2, "--lstm is about graphs, and --runner torch writes"),
        (
            ["export", "x", "--tensorrt", "--precision", "int8", "--calibrate", "y"],
            2,
            "--calibrate is about int8 graphs: it needs --precision int8, and no --tensorrt or --runner",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    videos: Path, tmp_path: Path, arguments: list[str], status: int, message: str
) -> None:
    done = run(*[text.format(videos=videos, tmp=tmp_path) for text in arguments])
    assert done.returncode == status
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_label_prints_a_table_when_asked(exported: Path, videos: Path, tmp_path: Path) -> None:
    done = run("label", str(videos), "-b", str(exported), "-o", str(tmp_path / "o.csv"), "--table", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("v_jump_g01_c01.mp4") == 1
    assert (tmp_path / "o.csv").exists()


def test_inspect_shows_model_variants_and_proof(exported: Path) -> None:
    shown = run("inspect", str(exported)).stdout
    for text in ("lrcn", "3: climb, jump, swim", "20 frames of 64x64", "onnx-fp32", "openvino", "100.0% of 6 labels"):
        assert text in " ".join(shown.split())
    assert json.loads(run("inspect", str(exported), "--json").stdout)["classes"] == ["climb", "jump", "swim"]


def test_inspect_names_files_of_training_without_their_folders(tmp_path: Path) -> None:
    clips = [f"/home/me/{number}.mp4" for number in range(4)]
    write_bundle(tmp_path / "b", encoder_weights="/home/me/w.pth", proof_clips=clips, calibration_clips=clips[:2])
    shown = " ".join(run("inspect", str(tmp_path / "b")).stdout.split())
    assert "/home/me" not in shown
    for text in ("w.pth", "4 entries, the first 0.mp4", "0.mp4, 1.mp4"):
        assert text in shown


def test_control_characters_in_names_do_not_reach_the_terminal(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2Jb\n.mp4").write_text("no video")
    done = run("label", str(tmp_path), "-b", str(exported), "-o", str(tmp_path / "o.jsonl"), "--table")
    assert done.returncode == 3
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[2Jb\\n.mp4" in done.stdout


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same kind of error, while a file is written."""
    for name in ("jump", "swim"):
        (tmp_path / "videos" / name).mkdir(parents=True)
        for copy in "abcd":
            make_video(tmp_path / "videos" / name / f"{copy}.mp4", Clip(frames=8))
    code = """
import resource, signal, sys
from harec_deploy.cli.console import run_app
from training.__main__ import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
run_app(app, sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "prepare", str(tmp_path / "videos"), "-o", str(tmp_path / "manifest.csv")]
    command += ["--split-by", "random"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error [file_system]: File too large: make room or get the right")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_another_error_of_the_system_is_not_explained_away() -> None:
    def broken() -> None:
        Path("nowhere").read_bytes()

    app = typer.Typer()
    app.command()(broken)
    with pytest.raises(FileNotFoundError):
        run_app(app, [])


def test_every_error_has_a_code_and_a_status() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HarecError)]
    codes = {cls.code for cls in classes}
    assert len(codes) == len(classes)
    drawn = errors.__doc__ or ""
    assert all(cls.__name__ in drawn for cls in classes)
    with pytest.raises(ValueError, match="unknown video error 'odd'; one of not_regular"):
        VideoError("odd")


def test_a_signal_in_the_middle_of_a_line_does_not_repeat_it() -> None:
    """The handler speaks while Rich still holds the line that it has just written. In a process of its own."""
    script = """
import io, signal, sys
from threading import Event
from harec_deploy.cli import console

class Interrupted(io.StringIO):
    def write(self, text):
        written = super().write(text)
        if self.getvalue() == text:  # the first time
            signal.raise_signal(signal.SIGINT)
        return written

console.err.file = Interrupted()
with console.Signals(Event(), "stopping") as signals:
    console.say("epoch 6")
print(repr(console.err.file.getvalue()), signals.exit_status)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("'epoch 6\\n' 130\n", "stopping\n")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_limit_of_the_system_is_one_line(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def start() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(SystemExit) as ended:
        run_app(app, [])
    assert ended.value.code == 1
    assert (
        capfd.readouterr()
        .err.strip()
        .startswith(f"error [failed]: the system refuses more: {os.strerror(number)}: use fewer")
    )
