"""Every attack is mounted, and the product holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOT_ATTACKS = {"__init__", "common", "tiny", "test_attacks"}
ATTACKS = sorted({path.stem for path in HERE.glob("*.py")} - NOT_ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_product_holds(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.attacks.{name}"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=HERE.parents[1],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("held: ")
    assert done.stdout.count("\n") == 1


def test_every_attack_is_listed() -> None:
    listed = [line.split()[0] for line in ((HERE / "__init__.py").read_text()).splitlines() if line.startswith("    ")]
    assert sorted(listed) == ATTACKS
