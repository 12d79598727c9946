"""An ONNX graph whose weights lie in a file outside of the bundle: reading it would leak that file into labels."""

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.attacks import tiny
from tests.attacks.common import attack, not_loaded, refused, run
from tests.media import make_video


def outside(location: str, *, constant: bool = False) -> bytes:
    """Return the head with its weight at ``location``, as an initializer or inside a Constant node."""
    head = tiny.head()
    weight = next(tensor for tensor in head.graph.initializer if tensor.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    if constant:
        moved = onnx.TensorProto()
        moved.CopyFrom(weight)
        head.graph.initializer.remove(weight)
        head.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=moved))
    return head.SerializeToString()


def mount() -> str:
    """Label with such bundles, on every runner."""
    secret = Path("secret.bin").absolute()
    secret.write_bytes(numpy_helper.from_array(np.eye(3, dtype=np.float32)).raw_data)
    up = f"{'../' * 20}{str(secret)[1:]}"
    kinds = {"up": up, "absolute": str(secret), "beside": "secret.bin", "url": f"file://{secret}"}
    kinds |= {"symlink": "link.bin", "hardlink": "hard.bin", "passwd": "../../../../../../etc/passwd"}
    make_video(Path("v.mp4"), frames=10)
    for name, location in kinds.items():
        for suffix in (".onnx", ".bin"):
            folder = Path(f"{name}{suffix}")
            graph = outside(location, constant=name == "absolute")
            tiny.tiny_bundle(folder, graphs={"head": graph}, suffix=suffix)
            (folder / "onnx-fp32/link.bin").symlink_to(secret)
            os.link(secret, folder / "onnx-fp32/hard.bin")
            not_loaded(folder, "keeps data in another file: refused")
    for runner in ("onnx", "openvino"):
        done = run("label", "v.mp4", "--bundle", "up.bin", "--runner", runner)
        refused(done, 1, "keeps data in another file: refused")
    return f"{2 * len(kinds)} bundles refused before a runtime saw them"


if __name__ == "__main__":
    attack(mount)
