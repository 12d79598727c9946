"""What README says exists, exists; its example runs."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import tables
from harec_deploy.__main__ import app as deploy
from training.__main__ import app as training

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
APPS = {"harec-deploy": deploy, "python -m training": training}


def commands(app: typer.Typer) -> dict[str, set[str]]:
    """Return {command: its options}."""
    group: Any = typer.main.get_command(app)
    return {name: set(options(command)) for name, command in group.commands.items()}


def options(command: Any) -> Iterator[str]:
    """Yield the options of a command, and of those that it has under it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from options(below)


def uses(program: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (command, options) of every use of a program in code blocks and code spans."""
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", README, re.S)
    code = "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", README)])
    for line in code.replace("\\\n", " ").splitlines():
        for words in re.findall(rf"{re.escape(program)} +(\w[^#|]*)", line):
            name, *rest = words.split()
            yield name, [word for word in rest if re.fullmatch(r"--?[a-z][\w-]*", word)]


@pytest.mark.parametrize("program", APPS)
def test_every_command_and_option_named_exists(program: str) -> None:
    known = commands(APPS[program])
    named = list(uses(program))
    assert named, f"README does not use {program}"
    for name, used in named:
        assert name in known, f"{program} {name}"
        assert set(used) <= known[name], f"{program} {name}"


@pytest.mark.parametrize("program", APPS)
def test_every_command_is_named(program: str) -> None:
    assert {name for name, _ in uses(program)} == set(commands(APPS[program]))


def test_make_targets_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([\w-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_files_linked_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in link:
            assert (ROOT / link).exists(), link


def test_the_python_example_runs(
    exported: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "bundle").symlink_to(exported)
    (tmp_path / "videos").symlink_to(videos)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(compile(example.replace("clip.mp4", "videos/jump/v_jump_g01_c01.mp4"), "README.md", "exec"), {})
    assert "jump" in capsys.readouterr().out


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (ROOT / ".ci/run").read_text().splitlines()


def test_the_project_names_no_machine() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for name in tracked.split("\0")[:-1]:
        data = (ROOT / name).read_bytes()
        assert not re.search(rb"(?:/ro" + rb"ot/|/wo" + rb"rk/|py" + rb"pi\.org)", data), name


@pytest.mark.parametrize(("name", "make"), tables.TABLES.items())
def test_tables_are_the_measured_ones(name: str, make: Callable[[], str]) -> None:
    assert f"<!-- {name} -->\n{make()}\n<!-- /{name} -->" in README
