"""Who is compared: the programs of benchmarks/peers, and harec-deploy itself."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measured import code_lines

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).parent / "peers"
PRECISIONS = ("fp32", "bf16", "int8")
# What a user of harec-deploy types, once and for each folder.
OWN_COMMANDS = (
    "harec-deploy export BUNDLE --clips CLIPS",
    "harec-deploy label CLIPS -b BUNDLE -o labels.csv --precision bf16",
)


@dataclass(frozen=True)
class Peer:
    """A way to label videos: a program with its options, or harec-deploy; and in which precision it reckons."""

    name: str
    about: str
    precision: str = "fp32"
    program: str = ""
    options: tuple[str, ...] = ()

    @property
    def own(self) -> bool:
        return not self.program

    @property
    def lines(self) -> int:
        """Lines of code that its user writes; of harec-deploy, commands."""
        return len(OWN_COMMANDS) if self.own else code_lines(PROGRAMS / f"{self.program}.py")

    def command(self, bundle: Path, videos: Sequence[str], journal: Path) -> list[str]:
        if self.own:
            how = ["-b", str(bundle), "-o", str(journal), "--runner", "openvino", "--precision", self.precision, "-q"]
            return [sys.executable, "-m", "harec_deploy", "label", *videos, *how]
        return [sys.executable, str(PROGRAMS / f"{self.program}.py"), str(bundle), *videos, *self.options]


PEERS = (
    *(Peer(f"harec-deploy {each}", f"`harec-deploy label --precision {each}`", each) for each in PRECISIONS),
    Peer("notebook, OpenCV", "the loop of a notebook: OpenCV, torchvision, PyTorch eager", program="notebook_opencv"),
    Peer(
        "notebook, channels last",
        "the same loop in the memory format that PyTorch recommends",
        program="notebook_opencv",
        options=("--channels-last",),
    ),
    Peer("notebook, decord", "the same loop with decord, channels last", program="notebook_decord"),
    Peer("notebook, bf16", "the loop with OpenCV, channels last, autocast to bf16", "bf16", "notebook_bf16"),
    Peer(
        "notebook, compiled bf16",
        "the loop with OpenCV, channels last, autocast to bf16, torch.compile with frozen weights",
        "bf16",
        "notebook_bf16",
        ("--compile",),
    ),
    Peer("torchcodec + torch", "torchcodec a video ahead, PyTorch eager, channels last", program="torchcodec_torch"),
    Peer("DataLoader", "worker processes with OpenCV, batches of 4 clips, channels last", program="dataloader"),
    Peer(
        "DataLoader, bf16",
        "worker processes with OpenCV, batches of 4 clips, channels last, autocast to bf16",
        "bf16",
        "dataloader",
        ("--bf16",),
    ),
    Peer("OpenVINO demo", "its action recognition demo's shape: a frame a request", program="openvino_demo"),
    Peer(
        "OpenVINO demo, bf16",
        "its action recognition demo's shape: a frame a request; in bf16",
        "bf16",
        "openvino_demo",
        ("--bf16",),
    ),
    Peer("Ray Data", "map decodes, map_batches runs PyTorch in an actor, channels last", program="ray_data"),
    Peer("PyTorchVideo", "EncodedVideo and uniform subsampling, PyTorch eager", program="pytorchvideo_api"),
)

# Libraries that have a program of their own for this task and do not run here, or not whole: what is tried each time.
ATTEMPTS = {
    "MMAction2 (inference API)": "import mmaction.apis, mmaction.models",
    "PyTorchVideo (its transforms)": "import pytorchvideo.transforms",
}


def environment(**more: str) -> dict[str, str]:
    """Return what programs are started with."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **more}
