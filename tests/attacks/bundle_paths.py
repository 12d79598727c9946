"""A bundle whose hashes are right and whose files lead out of it: by paths, links, and names that are no files."""

import json
import os
from pathlib import Path

from tests.attacks.common import attack, not_loaded, refused, run
from tests.attacks.tiny import tiny_bundle


def mount() -> str:
    """Load such bundles."""
    secret = Path("secret.safetensors")
    secret.write_bytes((tiny_bundle(Path("good")).folder / "weights.safetensors").read_bytes())
    out = {
        "up": "../secret.safetensors",
        "absolute": str(secret.absolute()),
        "round": "onnx-fp32/../../secret.safetensors",
    }
    odd = {"null": "a\0b", "long": "x" * 5000, "empty": "", "folder": "onnx-fp32", "device": "/dev/zero"}
    for name, path in (out | odd).items():
        spec_file = tiny_bundle(Path(name)).folder / "bundle.json"
        spec = json.loads(spec_file.read_text())
        spec["weights"]["path"] = path
        spec_file.write_text(json.dumps(spec))
        message = "leads out of the bundle" if name in {*out, "device"} else ""
        not_loaded(Path(name), message)
    links = {"symlink": "leads out", "linked folder": "leads out", "loop": "cannot be read", "fifo": "is missing"}
    for name, message in links.items():
        weights = tiny_bundle(Path(name)).folder / "weights.safetensors"
        weights.unlink()
        if name == "symlink":
            weights.symlink_to(secret.absolute())
        elif name == "linked folder":
            graphs = Path(name) / "onnx-fp32"
            graphs.rename("elsewhere")
            graphs.symlink_to(Path("elsewhere").absolute())
            weights.write_bytes(secret.read_bytes())
        elif name == "loop":
            weights.symlink_to(weights.name)
        else:
            os.mkfifo(weights)
        not_loaded(Path(name), message)
    tiny_bundle(Path("pipe"))
    Path("pipe/bundle.json").unlink()
    os.mkfifo("pipe/bundle.json")
    refused(run("inspect", "pipe"), 1, "is no regular file")
    return f"{len(out) + len(odd) + 5} bundles refused"


if __name__ == "__main__":
    attack(mount)
