"""Which videos of a run belong to one of several machines: every video to exactly one, found without asking the others.

A video goes where the hash of its place says: its path below the folder that was named. So machines may mount an
archive at different places and under different names, folders may grow, and a video stays with its machine. A file
that was named itself, by a glob or in a list too, has no such folder: its path as given counts. Size and time of change
do not, as machines that look at different moments would disagree on a file that still grows, and nobody would take it.
"""

import hashlib
import os
import re
from typing import NamedTuple

from harec_deploy.errors import UsageError


class Shard(NamedTuple):
    """One part of a run: ``number``, from 1 on, of ``total``."""

    number: int
    total: int

    @classmethod
    def read(cls, text: str) -> "Shard":
        """Return the shard that "2/4" names. Raises UsageError."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text.strip())
        shard = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= shard.number <= shard.total:
            raise UsageError(f"--shard {text}: allowed are i/n with 1 <= i <= n, such as 2/4")
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def has(self, place: str) -> bool:
        """Tell whether the video at ``place`` belongs to this shard."""
        digest = hashlib.sha256(os.fsencode(place)).digest()
        return int.from_bytes(digest[:8], "big") % self.total == self.number - 1


def place_of(name: str, root: str) -> str:
    """Return the path of ``name`` below ``root``, the folder that was named, or "" for a file that was named itself."""
    return name.removeprefix(root).lstrip("/")
