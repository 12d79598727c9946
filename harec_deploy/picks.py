"""What `harec-deploy bench pick` found to be the fastest way to run a bundle on this machine, for ``auto`` to take.

It lies outside the bundle, which may be shared or read-only: in picks.json of the user's state folder. An entry holds
for one state of the bundle on one machine with the same runtimes; nothing depends on it but the choice, so what cannot
be read is passed over with a word.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from harec_deploy import machine
from harec_deploy.bundle import Bundle
from harec_deploy.errors import OutputError
from harec_deploy.files import atomic_write, locked, state_folder
from harec_deploy.runners import Execution

MAX_BYTES = 1 << 24
_REMEDY = "set XDG_STATE_HOME to a folder of yours"


class Pick(msgspec.Struct, frozen=True, kw_only=True):
    """One choice. bundle, machine: what it holds for. clips_per_s: of every way that was measured, the chosen first."""

    bundle: str
    machine: dict[str, Any]
    variant: str
    runner: str
    precision: str
    device: str
    clips_per_s: dict[str, float]
    measured: str

    @classmethod
    def of(cls, bundle: Bundle, way: Execution, clips_per_s: dict[str, float]) -> "Pick":
        """Make the choice of a way for this machine, now."""
        return cls(
            bundle=identity(bundle),
            machine=_here(),
            variant=way.variant,
            runner=way.runner.name,
            precision=way.precision,
            device=way.runner.device,
            clips_per_s=clips_per_s,
            measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def is_of(self, way: Execution) -> bool:
        """Tell whether this is the way that was chosen."""
        runner = way.runner
        chosen = (self.variant, self.runner, self.precision, self.device)
        return chosen == (way.variant, runner.name, way.precision, runner.device)

    def reason(self) -> str:
        """Say why it was chosen."""
        speeds = ", ".join(f"{name} {speed:.1f}" for name, speed in self.clips_per_s.items())
        return f"picked for this machine by harec-deploy bench pick on {self.measured[:10]}, in clips/s: {speeds}"


class _File(msgspec.Struct, frozen=True, kw_only=True):
    schema: int
    picks: list[Pick]


def path() -> Path:
    """Return where choices are stored; it may not exist."""
    return state_folder() / "picks.json"


def identity(bundle: Bundle) -> str:
    """Return a SHA-256 over all that a choice depends on: weights, variants with their proofs, shapes of clips."""
    spec = bundle.spec
    parts = (spec.weights, spec.variants, spec.sampling, spec.size)
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def find(bundle: Bundle, ways: Sequence[Execution]) -> tuple[Pick | None, str]:
    """Return the choice among ``ways`` on this machine, or None; and what a person should know of it, or ""."""
    picks, note = _read()
    own = [pick for pick in picks if pick.bundle == identity(bundle)]
    if not own:
        return None, note
    here = _here()
    there = [pick for pick in own if pick.machine == here]
    if not there:
        other = ", ".join(name for name in here if own[-1].machine.get(name) != here[name])
        return None, f"the stored pick is of a machine with other {other}: give harec-deploy bench pick again"
    return next((pick for pick in there if any(map(pick.is_of, ways))), None), note


def store(pick: Pick) -> Path:
    """Put a choice in the place of an older one for the same bundle, machine and device, and return the file.

    Raises:
        OutputError: the file cannot be written. OutputLocked: another process stores one at this moment.
    """
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(file, _REMEDY):
            kept = [each for each in _read()[0] if _place(each) != _place(pick)]
            with atomic_write(file) as stream:
                content = _File(schema=1, picks=[*kept, pick])
                stream.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}; {_REMEDY}") from None
    return file


def _place(pick: Pick) -> tuple[str, dict[str, Any], str]:
    return pick.bundle, pick.machine, pick.device


def _read() -> tuple[list[Pick], str]:
    """Return all choices, and what is wrong with the file, or ""."""
    try:
        file = path()
    except OutputError:  # no folder to have one in
        return [], ""
    try:
        if not file.exists():
            return [], ""
        with file.open("rb") as stream:
            content = msgspec.json.decode(stream.read(MAX_BYTES), type=_File)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [], f"{file} cannot be read and is passed over: {error}"
    if content.schema != 1:
        return [], f"{file} is of schema version {content.schema} and is passed over: this harec-deploy reads 1"
    return content.picks, ""


def _here() -> dict[str, Any]:
    """Return this machine as it comes back from the file."""
    return msgspec.json.decode(msgspec.json.encode(machine.identity()), type=dict[str, Any])
