"""Table G of the test matrix: security by property.

G4, what a decoding child may do, is ``test_a_child_has_few_rights`` and its neighbours in tests/test_workers.py; the
fuzz smoke of G8 is tests/test_fuzz.py. The rest is here. G5 holds but for SIGTERM and SIGKILL in the middle of a write,
after which a private, hidden temporary file stays beside the output.
"""

import ast
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harec_deploy.files import atomic_folder, atomic_write
from tests.attacks.tiny import tiny_bundle
from tests.media import cut, make_audio, make_video

ROOT = Path(__file__).parents[2]
PACKAGES = ("harec_deploy", "training")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle").folder


def make_inputs(folder: Path) -> None:
    """Write two good videos, a cut one, and six that fail in different ways."""
    (folder / "sub").mkdir(parents=True)
    make_video(folder / "a.mp4", frames=10)
    make_video(folder / "sub/b.mkv", frames=10)
    make_audio(folder / "sound.mp4")
    cut(make_video(folder / "cut.mp4", frames=40), 0.7)
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mp4").touch()
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    (folder / "noise.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(range(256)) * 40)
    os.mkfifo(folder / "fifo.mp4")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with videos in it, the working directory of the commands."""
    make_inputs(tmp_path / "home/somebody/in")
    return tmp_path / "home/somebody"


def command(*arguments: object, module: str = "harec_deploy") -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(folder: Path, *arguments: object, before: tuple[str, ...] = (), **environment: str) -> Any:
    return subprocess.run(
        [*before, *command(*arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def rows(journal: Path) -> list[dict[str, Any]]:
    return sorted((json.loads(line) for line in journal.read_text().splitlines()[1:]), key=lambda row: str(row["path"]))


class TestNoNetwork:
    """G1: the same rows without a network; and nothing here would ask for one."""

    def test_g1_the_same_rows_in_a_process_without_network(self, home: Path, bundle: Path) -> None:
        unshare = next((way for way in (["unshare", "-n"], ["unshare", "-r", "-n"]) if self.works(way)), None)
        if unshare is None:
            pytest.skip("unshare(1) cannot make a network namespace here; the sockets are watched in the next test")
        (home / "lure.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
        shutil.move(home / "lure.m3u8", home / "in/lure.ts")
        assert run(home, "label", "in", "-b", bundle, "-o", "with.jsonl").returncode == 3
        assert run(home, "label", "in", "-b", bundle, "-o", "without.jsonl", before=(*unshare,)).returncode == 3
        assert rows(home / "with.jsonl") == rows(home / "without.jsonl")
        assert run(home, "report", "without.jsonl", before=(*unshare,)).returncode == 0

    def works(self, way: list[str]) -> bool:
        return shutil.which(way[0]) is not None and subprocess.run([*way, "true"], capture_output=True).returncode == 0

    def test_g1_python_opens_no_socket_to_the_outside(self, home: Path, bundle: Path, tmp_path: Path) -> None:
        """Every Python process of a run, the children too, notes its sockets; those within the machine are allowed."""
        (tmp_path / "site").mkdir()
        noted = tmp_path / "noted"
        (tmp_path / "site/sitecustomize.py").write_text(
            "import os, sys\n"
            "def note(event, arguments):\n"
            "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.bind', 'urllib.Request'):\n"
            f"        open({str(noted)!r}, 'a').write(f'{{event}} {{arguments[1:]!r}}\\n')\n"
            f"open({str(noted)!r}, 'a').write('started\\n')\n"
            "sys.addaudithook(note)\n"
        )
        path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
        assert run(home, "label", "in", "-b", bundle, "-o", "o.jsonl", PYTHONPATH=path).returncode == 3
        assert run(home, "report", "o.jsonl", PYTHONPATH=path).returncode == 0
        lines = noted.read_text().splitlines()
        assert lines.count("started") >= 3  # label, at least one child, report
        assert [line for line in lines if line != "started"] == []


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


class TestNoShell:
    """G2: no command line is ever put together as text."""

    def test_g2_ruff_finds_no_shell(self) -> None:
        rules = "S102,S301,S307,S602,S604,S605,S606,S607,S609"
        options = ["--isolated", "--no-cache", "--select", rules, "--output-format", "concise"]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", *options, *PACKAGES], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        bad = subprocess.run(
            [sys.executable, "-m", "ruff", "check", *options, "-"],
            input="import os\nos.system('ls')\n",
            capture_output=True,
            text=True,
        )
        assert bad.returncode == 1  # the rules are there

    def test_g2_every_process_is_started_from_a_list(self) -> None:
        started = 0
        for path in [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]:
            for call in calls(path):
                name = ast.unparse(call.func)
                where = f"{path}:{call.lineno}"
                assert not re.match(r"os\.(system|popen|exec|spawn|posix_spawn)|pty\.spawn|commands\.", name), where
                assert name not in ("eval", "exec", "compile", "pickle.load", "pickle.loads", "torch.jit.load"), where
                keywords = {keyword.arg: keyword.value for keyword in call.keywords}
                assert "shell" not in keywords, where
                if name.startswith(("subprocess.", "asyncio.create_subprocess")) or name == "Popen":
                    started += 1
                    assert not name.endswith(("getoutput", "getstatusoutput", "create_subprocess_shell")), where
                    first = call.args[0] if call.args else keywords["args"]
                    assert not isinstance(first, (ast.JoinedStr, ast.BinOp)), where
                    assert not (isinstance(first, ast.Constant) and isinstance(first.value, str)), where
                if name == "torch.load":
                    assert ast.unparse(keywords["weights_only"]) == "True", where
                if name in ("np.load", "np.lib.format.read_array"):
                    assert ast.unparse(keywords.get("allow_pickle", ast.Constant(False))) == "False", where
        assert started >= 1


def tree(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return everything in a folder: kind, mode, times of content and status, content."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, status.st_ctime_ns, content)
    return found


Ran = tuple[dict[str, Path], dict[str, dict[str, tuple[object, ...]]]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Ran:
    """Label, report and inspect; return the folders that the commands knew, and what was in them before."""
    root = tmp_path_factory.mktemp("ran")
    folders = {name: root / name for name in ("inputs", "tmp", "cache", "home", "out")}
    for folder in folders.values():
        folder.mkdir()
    make_inputs(folders["inputs"])
    del folders["out"]
    folders["bundle"] = bundle
    before = {name: tree(folder) for name, folder in folders.items()}
    places = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "XDG_CACHE_HOME": str(root / "cache")}
    places |= {"PYTHONDONTWRITEBYTECODE": "1"}
    out = root / "out/labels.csv"
    assert run(root, "label", "inputs", "-b", bundle, "-o", out, "--table", **places).returncode == 3
    assert run(root, "report", out.with_suffix(".jsonl"), **places).returncode == 0
    assert run(root, "inspect", bundle, **places).returncode == 0
    assert {path.name for path in (root / "out").iterdir()} == {
        "labels.csv",
        "labels.jsonl",
        "labels.summary.json",
        "labels.html",
    }
    return folders, before


class TestWritesNothingElse:
    """G3: inputs, the bundle and everything else stay as they are."""

    @pytest.mark.parametrize(
        "name",
        [
            "inputs",
            "bundle",
            "cache",
            "tmp",
            "home",
        ],
    )
    def test_g3_only_the_outputs_are_written(self, ran: Ran, name: str) -> None:
        folders, before = ran
        assert tree(folders[name]) == before[name]

    def test_g3_read_only_inputs_are_enough(self, home: Path, bundle: Path, tmp_path: Path) -> None:
        way = [
            "unshare",
            "-m",
            "sh",
            "-c",
            'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"',
        ]
        locked = (*way, "sh", str(home / "in"))
        probe = subprocess.run([*locked, "touch", str(home / "in/a.mp4")], capture_output=True, text=True)
        if "Read-only file system" not in probe.stderr:
            pytest.skip("no right to mount here; the test before compares the trees")
        done = run(home, "label", "in", "-b", bundle, "-o", "o.jsonl", before=locked)
        assert done.returncode == 3, done.stderr
        assert {row["path"] for row in rows(home / "o.jsonl") if row["status"] == "ok"} == {"in/a.mp4", "in/sub/b.mkv"}


WRITER = """
import sys, signal
from pathlib import Path
from harec_deploy.files import atomic_folder, atomic_write
path, how = Path(sys.argv[1]), sys.argv[2]
with (atomic_folder if how == "folder" else atomic_write)(path) as opened:
    stream = (opened / "part").open("wb") if how == "folder" else opened
    stream.write(b"half of the new")
    stream.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


class TestTemporaryFiles:
    """G5: private while they are written, gone when the writer ends, but for a kill that no program can answer."""

    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
    def test_g5_are_private_and_removed_on_every_error(self, tmp_path: Path, error: BaseException) -> None:
        for write in (atomic_write, atomic_folder):
            with pytest.raises(type(error)), write(tmp_path / "out"):
                (temporary,) = tmp_path.iterdir()
                assert stat.S_IMODE(temporary.stat().st_mode) & 0o077 == 0
                raise error
            assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("how", ["file", "folder"])
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_g5_a_signal_never_leaves_half_a_file(self, tmp_path: Path, how: str, number: signal.Signals) -> None:
        path = tmp_path / "out"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"half\n"
            (temporary,) = tmp_path.iterdir()
            process.send_signal(number)
            process.wait(timeout=30)
        assert not path.exists()
        left = list(tmp_path.iterdir())
        if number == signal.SIGINT:
            assert left == []
        else:  # Python unwinds nothing on these: what is left is private, hidden and named as what it is
            assert left == [temporary]
            assert temporary.name.startswith(".out.")
            assert temporary.suffix == ".tmp"
            assert stat.S_IMODE(temporary.stat().st_mode) & 0o077 == 0
        with atomic_write(path) as stream:  # and does not stand in the way
            stream.write(b"new")
        assert path.read_bytes() == b"new"

    def test_g5_a_run_leaves_none_whatever_ends_it(self, home: Path, bundle: Path) -> None:
        video = (home / "in/a.mp4").read_bytes()
        for number in range(300):
            (home / f"in/{number:03d}.mp4").write_bytes(video)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for number in (signal.SIGINT, signal.SIGKILL):
            out = home / f"{number.name}.jsonl"
            process = subprocess.Popen(
                command("label", "in", "-b", bundle, "-o", out.with_suffix(".csv").name, "--workers", 1),
                cwd=home,
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + 60
            while not out.exists() or out.read_bytes().count(b"\n") < 3:
                assert process.poll() is None
                assert time.monotonic() < deadline
            process.send_signal(number)
            assert process.wait(timeout=60) != 0
            # The summary tells of an interrupted run too; the lock of a killed one holds nobody up.
            beside = {signal.SIGINT: ".summary.json", signal.SIGKILL: ".jsonl.lock"}[number]
            assert {path.name for path in home.iterdir() if path.name.startswith(out.stem)} == {
                out.name,
                out.stem + beside,
            }
            assert list(home.rglob(".*")) == []


class TestWords:
    """G6: what is told and written down has names as they were given, and nothing of where the machine keeps things."""

    def test_g6_no_home_folder_in_rows_and_messages(self, home: Path, bundle: Path) -> None:
        shutil.copytree(bundle, home / "bundle")
        done = run(home, "label", "in", "-b", "bundle", "-o", "o.csv", "--table", HOME=str(home))
        assert done.returncode == 3
        failed = {row["path"]: row["error"]["code"] for row in rows(home / "o.jsonl") if row["error"]}
        assert len(failed) == 6, failed
        report = run(home, "report", "o.jsonl", HOME=str(home))
        assert report.returncode == 0
        texts = {path.name: path.read_text() for path in home.iterdir() if path.suffix in (".csv", ".jsonl", ".html")}
        assert len(texts) == 3
        texts |= {"stdout": done.stdout, "stderr": done.stderr, "report": report.stdout + report.stderr}
        for name, text in texts.items():
            assert "somebody" not in text, name
            assert str(ROOT) not in text, name
            assert "/dev/fd" not in text, name

    def test_g6_mistakes_name_only_what_was_named(self, home: Path) -> None:
        for arguments, status in (
            (("label", "in", "-b", "in"), 1),
            (("label", "nowhere", "-b", "in"), 2),
            (("inspect", "nowhere"), 1),
            (("report", "in/text.mp4"), 1),
        ):
            done = run(home, *arguments, HOME=str(home))
            assert done.returncode == status
            assert "somebody" not in done.stdout + done.stderr
            assert "Traceback" not in done.stderr

    def test_g6_control_characters_are_escaped(self, home: Path, bundle: Path) -> None:
        """Of many kinds: tests/attacks/terminal_names.py; here, that every error goes the same way."""
        name = "no\x1b]0;owned\x07\x9b\n\u202ewhere"
        for arguments in (
            ("label", name, "-b", bundle),
            ("inspect", name),
            ("report", name),
            ("label", "in", "-b", name),
        ):
            done = run(home, *arguments)
            assert done.returncode in (1, 2)
            assert r"no\x1b]0;owned\x07\x9b\n\u202ewhere" in done.stderr
            assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.stderr + done.stdout)

    def test_g6_a_bundles_words_are_escaped(self, home: Path, bundle: Path) -> None:
        shutil.copytree(bundle, home / "bundle")
        spec = json.loads((home / "bundle/bundle.json").read_text())
        spec |= {"architecture": "x\x1b]0;owned\x07", "training": {"note\x1b[2J": "\x9b31m\u202e"}}
        (home / "bundle/bundle.json").write_text(json.dumps(spec))
        done = run(home, "inspect", "bundle")
        assert done.returncode == 0
        assert "owned" in done.stdout
        assert not {"\x1b", "\x9b", "\u202e"} & set(done.stdout)


URLS = [
    "http://127.0.0.1:9/a.mp4",
    "https://example.org/a.mp4",
    "file:///etc/passwd",
    "rtsp://127.0.0.1:9/a",
    "concat:in/a.mp4|in/sub/b.mkv",
    "subfile,,start,0,end,9,,:in/a.mp4",
    "pipe:0",
    "data:video/mp4;base64,AAAA",
    "-",
]


class TestUrls:
    """G7: only names of local files are inputs; what looks like a URL is a usage error."""

    @pytest.mark.parametrize("url", URLS)
    def test_g7_as_an_input(self, home: Path, bundle: Path, url: str) -> None:
        done = run(home, "label", url, "-b", bundle)
        assert done.returncode == 2
        assert "error [usage]: " in done.stderr
        assert "Traceback" not in done.stderr
        assert not (home / "labels.jsonl").exists()

    def test_g7_in_a_list(self, home: Path, bundle: Path) -> None:
        (home / "list.txt").write_text("in/a.mp4\nhttp://127.0.0.1:9/a.mp4\n")
        done = run(home, "label", "@list.txt", "-b", bundle)
        assert done.returncode == 2
        assert "only local files and folders are labelled" in done.stderr

    def test_g7_in_other_places(self, home: Path) -> None:
        url = "http://127.0.0.1:9/x"
        for arguments in (
            ("report", url),
            ("inspect", url),
            ("label", "in", "-b", url),
        ):
            done = run(home, *arguments)
            assert done.returncode in (1, 2), arguments
            assert done.stderr.count("\n") <= 2
            assert "Traceback" not in done.stderr

    def test_g7_files_of_such_names_are_files(self, home: Path, bundle: Path) -> None:
        names = [f"in/{name}" for name in ("http:x.mp4", "concat:a.mp4", "pipe:0.mp4", "-rf.mp4", "data:x.mp4")]
        for name in names:
            shutil.copy(home / "in/a.mp4", home / name)
        assert run(home, "label", *names, "-b", bundle).returncode == 0
        assert [(row["path"], row["status"]) for row in rows(home / "labels.jsonl")] == [
            (n, "ok") for n in sorted(names)
        ]
