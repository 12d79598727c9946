"""What the attacks share: a place to build, the product as a process, the verdict."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harec_deploy.bundle import load
from harec_deploy.errors import BundleError

ROOT = Path(__file__).parents[2]


class AttackWorked(Exception):
    """The product did what the attacker wanted."""


def run(*arguments: str | Path, module: str = "harec_deploy", seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command of the product in the working directory and return what became of it."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def held(condition: object, what: str) -> None:
    """Raise AttackWorked unless the condition holds."""
    if not condition:
        raise AttackWorked(what)


def refused(done: subprocess.CompletedProcess[str], status: int, message: str) -> None:
    """Check that the product refused in one line with a message, and did not merely fall over."""
    told = f"exit {done.returncode}, {done.stderr.strip()[-300:]!r}"
    held(done.returncode == status and message in done.stderr, f"expected exit {status} with {message!r}, got {told}")
    held("Traceback" not in done.stderr, f"it fell over: {told}")


def not_loaded(bundle: Path, message: str) -> None:
    """Check that a bundle is refused, in this process, which is quicker; its check clips too."""
    try:
        load(bundle).check_clips()
    except BundleError as error:
        held(message in str(error), f"expected {message!r}, got {str(error)!r}")
    else:
        held(False, f"{bundle} was loaded")


def attack(mount: Callable[[], str]) -> None:
    """Mount an attack in an empty working directory, print the verdict and exit with it.

    mount: returns what the product did; raises AttackWorked.
    """
    with tempfile.TemporaryDirectory(prefix="harec-attack-") as folder:
        os.chdir(folder)
        try:
            sys.stdout.write(f"held: {mount()}\n")
        except AttackWorked as worked:
            sys.stdout.write(f"ATTACK WORKED: {worked}\n")
            sys.exit(1)
        finally:
            os.chdir("/")
