"""Pre-trained weights by name or address: found in PyTorch's cache or downloaded into it, and held to their hash.

"imagenet" is what torchvision publishes for its network; the first digits of the SHA-256 stand in the file's name.
"kinetics400" is what PyTorchVideo 0.1.5 names in ``models/hub/resnet.py``, without a hash. What was downloaded without
one gets its SHA-256 beside it, as ``sha256sum`` writes it, so that damage to it is noticed later.
"""

import re
import shutil
import tempfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, build_opener

import torch
import torchvision

from harec_deploy import __version__
from harec_deploy.errors import UsageError
from harec_deploy.files import sha256
from harec_deploy.models.encoders import BACKBONES, load_local_weights, one_line

# architecture -> torchvision's network that its encoder is, or is inflated from
NETS = {f"{backbone}_lstm": backbone for backbone in BACKBONES} | {"i3d_r50_lstm": "resnet50"}
KINETICS400 = {"i3d_r50_lstm": "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/I3D_8x8_R50.pyth"}
NAMES = ("imagenet", "kinetics400")
STALLED_S = 30.0  # without a byte: no better than no network


def published(architecture: str) -> dict[str, str]:
    """Return name and address of the weights that the architecture's encoder can begin with; none for some."""
    found = {}
    if architecture in NETS:
        found["imagenet"] = torchvision.models.get_model_weights(NETS[architecture]).DEFAULT.url
    if architecture in KINETICS400:
        found["kinetics400"] = KINETICS400[architecture]
    return found


def network(architecture: str) -> str:
    """Return torchvision's network that the encoder is. Raises UsageError for an encoder that nobody pre-trained."""
    if architecture not in NETS:
        raise UsageError(f"{architecture} has no pre-trained encoder: leave --encoder-weights out")
    return NETS[architecture]


def download_folder() -> Path:
    """Return where torchvision and PyTorchVideo keep downloads too; TORCH_HOME moves it. It may not exist."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def local_file(weights: str, architecture: str, say: Callable[[str], None]) -> Path:
    """Return the file of an encoder's weights, downloaded if it must be.

    weights: "imagenet"; "kinetics400"; an http(s) address whose file name carries digits of its SHA-256, as
        torchvision's do; or a path, which is returned as it is.
    say: is told what is downloaded, and where no published hash vouches for it.

    Raises:
        UsageError: the architecture has no such weights, they cannot be downloaded, or the file is another one.
    """
    url = _address(weights, architecture)
    if not url:
        return Path(weights)
    path, digits = download_folder() / url.rpartition("/")[2], _published_digits(url)
    try:
        if path.exists():
            _check_kept(path, digits or _noted_digits(path), url)
        else:
            say(f"downloading {url} to {path.parent}")
            _download(url, path, digits)
        if not digits:
            say(f"{path.name}: its publisher gives no SHA-256 to check it by; it is {sha256(path)}")
    except (OSError, HTTPException, ValueError) as error:  # the last of an address that is none
        told = f"SHA-256 {digits}..." if digits else "no SHA-256 is published"
        raise UsageError(
            f"{path.name} cannot be downloaded ({one_line(error)}): where there is a network get {url} ({told}), and "
            f"put it in {path.parent} or give it with --encoder-weights FILE"
        ) from None
    return path


def _address(weights: str, architecture: str) -> str:
    """Return where weights are downloaded from, "" for a path. Raises UsageError for what cannot be checked."""
    network(architecture)
    known = published(architecture)
    if weights in known:
        return known[weights]
    if weights in NAMES:
        raise UsageError(f"{architecture} has no {weights} weights: give {', '.join(known)}, an address or a file")
    if not weights.startswith(("http://", "https://")):
        return ""
    if not _published_digits(weights):
        raise UsageError(
            f"{weights} has no SHA-256 in its file name to be checked by, as NAME-0123abcd.pth has: download it "
            "yourself and give --encoder-weights FILE"
        )
    return weights


def _check_kept(path: Path, digits: str, url: str) -> None:
    got = sha256(path)
    if not got.startswith(digits):
        raise UsageError(
            f"{path} is damaged or another file, of SHA-256 {got[:16]}... and not {digits[:16]}...: remove it, and the "
            f"next run downloads {url}"
        )


def _download(url: str, path: Path, digits: str) -> None:
    """Put the file of an address in its place, whole and of the right SHA-256, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as staging:
        part = Path(staging, path.name)
        # Servers are known to turn away the name that urllib gives itself.
        request = Request(url, headers={"User-Agent": f"harec-deploy/{__version__}"})  # noqa: S310 - http(s) only
        with build_opener().open(request, timeout=STALLED_S) as answer, part.open("wb") as stream:
            shutil.copyfileobj(answer, stream)
        _check_arrived(part, digits, url)
        part.replace(path)
    if not digits:
        _note(path).write_text(f"{sha256(path)}  {path.name}\n")


def _check_arrived(part: Path, digits: str, url: str) -> None:
    got, todo = sha256(part), "it was not kept; try again, or get it elsewhere and give it with --encoder-weights FILE"
    if not got.startswith(digits):
        raise UsageError(f"{url} gave a file of SHA-256 {got[:16]}..., not {digits}...: {todo}")
    if not digits:  # half of the file, or a proxy's page, must not be found here next time
        try:
            load_local_weights(part)
        except UsageError:
            raise UsageError(f"{url} gave {part.stat().st_size} bytes that are no weights: {todo}") from None


def _published_digits(url: str) -> str:
    """Return the first digits of the SHA-256, which PyTorch's convention puts in the name: resnet50-11ad3fa6.pth."""
    found = re.search(r"/[\w.-]+-([0-9a-f]{8,64})\.\w+$", url)
    return found[1] if found else ""


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted_digits(path: Path) -> str:
    note = _note(path)
    return note.read_text().partition(" ")[0] if note.is_file() else ""
