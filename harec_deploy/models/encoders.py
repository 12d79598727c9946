"""Frame encoders: raw uint8 frames in, one feature vector a frame out; normalisation is part of the graph."""

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from harec_deploy.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelEncoder(nn.Module):
    """A backbone behind the normalisation that it was trained with; pixels are uint8, channels last.

    keep_normalisation: it is part of the state dict, for a backbone whose weights come with one of several.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        keep_normalisation: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.keep_normalisation = keep_normalisation
        self._frozen: tuple[nn.Module, ...] = ()
        self.normalise_by(mean, std)

    def normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Take mean and deviation of the three colours, of values from 0 to 1."""
        scale = 1 / (255 * torch.tensor(std))
        self.register_buffer("scale", scale, persistent=self.keep_normalisation)
        self.register_buffer("offset", -torch.tensor(mean) / torch.tensor(std), persistent=self.keep_normalisation)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return pixels uint8 (N, ..., 3) as floats of about -2 to 2, (N, 3, ...).

        A plane is scaled at a time: in ONNX Runtime a small encoder took most of its time for pixels of three values
        each. Bytes become floats first, because TensorRT does nothing else with bytes.
        """
        planes = pixels.to(self.get_buffer("scale").dtype).movedim(-1, 1)
        scale, offset = (self.get_buffer(name).reshape(3, *[1] * (planes.ndim - 2)) for name in ("scale", "offset"))
        return planes * scale + offset

    def freeze(self, but_last: int = 0) -> None:
        """Keep the backbone as it is in training, its statistics of batch normalisation too.

        but_last: how many of its last stages are trained all the same: a ResNet has four after its first convolution,
        of a MobileNet every block counts. Their statistics stay as well: a batch holds a few clips, whose frames are
        alike, and normalised by such a batch an encoder gives other features than labelling will see.

        Raises:
            UsageError: it has fewer stages.
        """
        self._frozen = (self.backbone,)
        if but_last:
            (chain,) = self.backbone.children()
            self._frozen = tuple(chain.children())[: _first_of_last(chain, but_last)]
        for stage in self._frozen:
            stage.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "PixelEncoder":
        """Switch to training, all but what is frozen."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        if self._frozen:
            _keep_statistics(self)
        return self


def _keep_statistics(module: nn.Module) -> None:
    """Put batch normalisation into eval mode; its weights may be trained all the same."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


class FrameEncoder(PixelEncoder):
    """Wraps a backbone (N, 3, H, W) -> (N, D): frames uint8 (N, H, W, 3) -> features float32 (N, D)."""

    def forward(self, frames: Tensor) -> Tensor:
        """Return the features of frames."""
        features: Tensor = self.backbone(self.normalised(frames))
        return features

    def cut(self, but_last: int) -> tuple["FrameEncoder", nn.Module]:
        """Return all but its last stages, frames uint8 (N, H, W, 3) -> maps float32 (N, C, H', W'), and the rest.

        Both have the encoder's own weights, not copies of them. Only networks of ``BACKBONES`` can be cut.

        Raises:
            UsageError: it has fewer stages.
        """
        (chain,) = self.backbone.children()
        stages = tuple(chain.children())
        first = _first_of_last(chain, but_last)
        begin = FrameEncoder(nn.Sequential(*stages[:first]), self.feature_dim, IMAGENET_MEAN, IMAGENET_STD)
        return begin, _LastStages(nn.Sequential(*stages[first:]))


def _first_of_last(chain: nn.Module, count: int) -> int:
    """Return the place of the first of the last ``count`` parts that have weights. Raises UsageError."""
    stages = [place for place, part in enumerate(chain.children()) if next(part.parameters(), None) is not None]
    if count >= len(stages):
        raise UsageError(f"the encoder has {len(stages)} stages: allowed are 0 to {len(stages) - 1} to train")
    return stages[-count]


class _Pooled(nn.Module):
    """A convolutional trunk followed by the mean over height and width."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.trunk(pixels)
        return maps.mean((2, 3))  # adaptive pooling would export as a chain of shape operations


class _LastStages(_Pooled):
    """Stages that are trained behind frozen ones: maps (N, C, H', W') -> features (N, D)."""

    def train(self, mode: bool = True) -> "_LastStages":
        """Switch to training, all but the statistics, as ``PixelEncoder.freeze`` says."""
        super().train(mode)
        _keep_statistics(self)
        return self


def _resnet_trunk(net: nn.Module) -> nn.Module:
    return nn.Sequential(*list(net.children())[:-2])  # without average pooling and classifier


def _mobilenet_trunk(net: nn.Module) -> nn.Module:
    return net.get_submodule("features")


# torchvision's name -> (trunk of the whole network, width of its features)
BACKBONES: dict[str, tuple[Callable[[nn.Module], nn.Module], int]] = {
    "resnet18": (_resnet_trunk, 512),
    "resnet34": (_resnet_trunk, 512),
    "resnet50": (_resnet_trunk, 2048),
    "mobilenet_v2": (_mobilenet_trunk, 1280),
    "mobilenet_v3_large": (_mobilenet_trunk, 960),
}


def frame_encoder(backbone: str, weights: str | None) -> FrameEncoder:
    """Return a torchvision network without its classifier.

    weights: the path of a state dict for the whole torchvision network, or None.

    Raises:
        UsageError: the weights do not fit, or cannot be read.
    """
    trunk, feature_dim = BACKBONES[backbone]
    net = torchvision_net(backbone, weights)
    return FrameEncoder(_Pooled(trunk(net)), feature_dim, IMAGENET_MEAN, IMAGENET_STD)


def torchvision_net(backbone: str, weights: str | None) -> nn.Module:
    """Return a whole torchvision network, its weights from where ``frame_encoder`` takes them.

    Raises:
        UsageError: the weights do not fit, or cannot be read.
    """
    net: nn.Module = torchvision.models.get_model(backbone, weights=None)
    if weights is not None:
        load_strictly(net, load_local_weights(Path(weights)), f"{weights} is not for {backbone}")
    return net


def load_strictly(net: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    """Load a state dict that must have all tensors of ``net``, no others, and finite values.

    Raises:
        UsageError: it has not; the message begins with ``complaint``, as in "w.pth is not for resnet50".
    """
    missing, unexpected = sorted(set(net.state_dict()) - set(state)), sorted(set(state) - set(net.state_dict()))
    # torchvision files from before 0.4 lack the counters of batch normalisation, which inference does not use.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise UsageError(
            f"{complaint}: {len(missing)} tensors missing {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}"
        )
    try:
        net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UsageError(f"{complaint}: {one_line(error)}") from None
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UsageError(f"{complaint}: {name} holds NaN or infinity; take another file")


# What torch.load and safetensors raise on a file that is damaged, foreign or holds code.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
    struct.error,
    RuntimeError,
    MemoryError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)


def load_local_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors or PyTorch file; nothing in it is run.

    Of a PyTorchVideo checkpoint, whose state dict stands beside other things under "model_state", that is taken.

    Raises:
        UsageError: the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UsageError(f"encoder weights {path} not found: give a file, imagenet, kinetics400 or an address")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_plain(path)
    except _UNREADABLE as error:
        raise UsageError(f"{path} holds no plain weights: {one_line(error)}") from None
    if isinstance(state, dict) and isinstance(state.get("model_state"), dict):
        state = state["model_state"]
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items()):
        raise UsageError(f"{path} holds no state dict: expected names and tensors")
    return state


def load_plain(path: Path) -> Any:
    """Read what torch.save wrote, if it is tensors and plain values; nothing in it is run.

    Raises:
        UsageError: it is damaged, unpacks to more than it is, or asks for code to be run, which is named.
    """
    try:
        _refuse_bomb(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what it cannot read it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        code = re.search(r"GLOBAL (\S+)", str(error))  # what torch.load would have had to call
        told = f"it asks for {code[1]} to be run" if code else one_line(error)
        raise UsageError(f"{path} holds no plain weights: {told}") from None


def _refuse_bomb(path: Path) -> None:
    """Raise ValueError for an archive that unpacks to more than it is: torch.save compresses nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked} bytes")


def one_line(error: Exception) -> str:
    """Return an error's text on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
