"""Weights with headers of absurd length, and tensors that overlap, leave holes for other data or lie outside."""

import json
from pathlib import Path

import msgspec

from harec_deploy.bundle import file_ref, save
from tests.attacks.common import attack, not_loaded, refused, run
from tests.attacks.tiny import tiny_bundle


def file_of(*places: tuple[int, int], dtype: str = "U8", extra: int = 0) -> bytes:
    """Return a file of tensors at these (start, end), with bytes up to the last end and ``extra`` more."""
    entries = {f"t{i}": {"dtype": dtype, "shape": [e - s], "data_offsets": [s, e]} for i, (s, e) in enumerate(places)}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(min(max(end for _, end in places), 99) + extra)


FILES = {
    "length 2^63": (1 << 63).to_bytes(8, "little") + b"{}",
    "length 2^64-1": b"\xff" * 8 + b"{}",
    "length 10 GB": (10 << 30).to_bytes(8, "little") + b"{}",
    "overlap": file_of((0, 8), (4, 12)),
    "same twice": file_of((0, 8), (0, 8)),
    "hole": file_of((0, 4), (8, 12)),
    "hole at the end": file_of((0, 4), extra=100),
    "backwards": file_of((0, 8), (8, 4)),
    "outside": file_of((0, 1 << 40)),
    "negative": file_of((-4, 4)),
    "unknown type": file_of((0, 8), dtype="CODE"),
    "deep": (200_004).to_bytes(8, "little") + b'{"a"' + b":" + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "empty": b"",
}


def mount() -> str:
    """Load bundles of such weights."""
    for name, content in FILES.items():
        made = tiny_bundle(Path(name))
        path = made.folder / "weights.safetensors"
        path.write_bytes(content)
        save(made.folder, msgspec.structs.replace(made.spec, weights=file_ref(made.folder, path)))
        not_loaded(made.folder, "is no safetensors file")
    refused(run("inspect", "overlap"), 1, "is no safetensors file")
    return f"{len(FILES)} files of weights refused"


if __name__ == "__main__":
    attack(mount)
