"""Weights that run code when they are unpickled, wherever the project reads a PyTorch file."""

import os
import pickle
from pathlib import Path

import torch

from harec_deploy.errors import UsageError
from harec_deploy.models.encoders import frame_encoder
from tests.attacks.common import attack, held, run
from tests.media import make_video


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def mount() -> str:
    """Take such encoder weights, and go on training from such a checkpoint."""
    marker = Path("marker").absolute()
    torch.save(Bomb(marker), "zip.pth")
    torch.save(Bomb(marker), "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"conv1.weight": torch.zeros(1), "fc.bias": Bomb(marker)}, "hidden.pt")
    Path("raw.pkl").write_bytes(pickle.dumps(Bomb(marker)))
    Path("named.safetensors").write_bytes(pickle.dumps(Bomb(marker)))
    names = ["zip.pth", "old.pth", "hidden.pt", "raw.pkl", "named.safetensors"]
    for name in names:
        try:
            frame_encoder("resnet18", name)
        except UsageError as error:
            held(name.startswith(("raw", "named")) or "posix.mkdir" in str(error), f"{name}: {error} names no code")
        else:
            held(False, f"{name} was taken")
        held(not marker.exists(), f"{name} ran its code")
    for label in ("climb", "jump"):
        Path("videos", label).mkdir(parents=True)
        for group in range(3):
            make_video(Path("videos", label, f"v_{label}_g0{group}_c01.mp4"), frames=6, seed=group)
    prepared = run("prepare", "videos", module="training")
    held(prepared.returncode == 0, f"no manifest: {prepared.stderr}")
    Path("run/checkpoints").mkdir(parents=True)
    torch.save({"state_dict": Bomb(marker), "pytorch-lightning_version": "2.6.0"}, "run/checkpoints/last.ckpt")
    done = run(
        "fit", "videos/manifest.csv", "--architecture", "lrcn", "--epochs", "1", "--out", "run", module="training"
    )
    held(not marker.exists(), "last.ckpt ran its code")
    held(done.returncode != 0 and "posix.mkdir" in done.stderr, f"last.ckpt was not refused: {done.stderr[-300:]}")
    held(not Path("run/bundle").exists(), "training went on from last.ckpt")
    return f"{len(names)} files of weights and a checkpoint refused, none ran its code"


if __name__ == "__main__":
    attack(mount)
