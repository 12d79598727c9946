"""ResNet-50 inflated to three dimensions, with an LSTM over its features in time.

I3D is of Carreira & Zisserman 2017, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset"
(https://arxiv.org/abs/1705.07750); its ResNet-50 form, with kernels over time in every other block, is of Wang et al.
2018, "Non-local Neural Networks" (https://arxiv.org/abs/1711.07971). Layers and the names of their weights are those of
PyTorchVideo's ``i3d_r50`` (https://pytorchvideo.readthedocs.io/en/latest/model_zoo.html), whose Kinetics-400 weights
("I3D_8x8_R50.pyth") load as they are.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models.clipwise import ClipEncoder, ClipwiseModel
from harec_deploy.models.encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_local_weights,
    load_strictly,
    torchvision_net,
)
from harec_deploy.models.head import LSTMHead
from harec_deploy.spec import HeadSpec

FEATURE_DIM = 2048
# What the Kinetics-400 weights were trained with: https://pytorchvideo.org/docs/tutorial_torchhub_inference
KINETICS_MEAN, KINETICS_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
KINETICS_CLASSIFIER = ("blocks.6.proj.weight", "blocks.6.proj.bias")

# Of each stage: width inside its blocks, stride in space, and the kernel over time at the start of each block.
STAGES = ((64, 1, (3, 3, 3)), (128, 2, (3, 1, 3, 1)), (256, 2, (3, 1, 3, 1, 3, 1)), (512, 2, (1, 3, 1)))
EXPANSION = 4
LEAST_FRAMES, LEAST_SIDE = 2, 32  # what pooling and strides leave one of


class _Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, time: int, stride: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv3d(before, width, (time, 1, 1), padding=(time // 2, 0, 0), bias=False)
        self.norm_a = nn.BatchNorm3d(width)
        self.conv_b = nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), padding=(0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(width)
        self.conv_c = nn.Conv3d(width, width * EXPANSION, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(width * EXPANSION)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.norm_a(self.conv_a(maps)).relu()
        maps = self.norm_b(self.conv_b(maps)).relu()
        added: Tensor = self.norm_c(self.conv_c(maps))
        return added


class _Block(nn.Module):
    def __init__(self, before: int, width: int, time: int, stride: int) -> None:
        super().__init__()
        self.branch1_conv: nn.Module = nn.Identity()
        self.branch1_norm: nn.Module = nn.Identity()
        if before != width * EXPANSION:
            self.branch1_conv = nn.Conv3d(before, width * EXPANSION, 1, (1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(width * EXPANSION)
        self.branch2 = _Bottleneck(before, width, time, stride)

    def forward(self, maps: Tensor) -> Tensor:
        summed: Tensor = self.branch1_norm(self.branch1_conv(maps)) + self.branch2(maps)
        return summed.relu()


class _Stage(nn.Module):
    def __init__(self, before: int, width: int, stride: int, times: tuple[int, ...]) -> None:
        super().__init__()
        self.res_blocks = nn.Sequential(
            *(
                _Block(width * EXPANSION if number else before, width, time, 1 if number else stride)
                for number, time in enumerate(times)
            )
        )

    def forward(self, maps: Tensor) -> Tensor:
        deeper: Tensor = self.res_blocks(maps)
        return deeper


class _Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 64, (5, 7, 7), (1, 2, 2), padding=(2, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(64)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.pool(self.norm(self.conv(pixels)).relu())
        return maps


class I3DResNet50(nn.Module):
    """Normalised clips (B, 3, T, H, W) -> features (B, T / 2, 2048), the mean over height and width."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = (
            _Stage(before, width, stride, times)
            for before, (width, stride, times) in zip((64, 256, 512, 1024), STAGES, strict=True)
        )
        self.blocks = nn.Sequential(_Stem(), first, nn.MaxPool3d((2, 1, 1)), *rest)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of normalised clips."""
        maps: Tensor = self.blocks(pixels)
        return maps.mean((3, 4)).transpose(1, 2)  # adaptive pooling to (None, 1, 1) would not export


def i3d_r50_lstm(head: HeadSpec, classes: int, *, frames: int, size: Size) -> ClipwiseModel:
    """Return the model with random weights.

    Raises:
        UsageError: clips that are too small.
    """
    if frames < LEAST_FRAMES or min(size.width, size.height) < LEAST_SIDE:
        got = f"{frames} of {size.width}x{size.height}"
        raise UsageError(
            f"i3d_r50_lstm takes at least {LEAST_FRAMES} frames of at least {LEAST_SIDE}x{LEAST_SIDE}, not {got}"
        )
    encoder = ClipEncoder(I3DResNet50(), FEATURE_DIM, KINETICS_MEAN, KINETICS_STD, keep_normalisation=True)
    return ClipwiseModel(encoder, LSTMHead(FEATURE_DIM, classes, head))


def load_pretrained(encoder: ClipEncoder, weights: str, say: Callable[[str], None]) -> None:
    """Give the encoder weights, and the normalisation that they were trained with.

    weights: a file of Kinetics-400 weights in PyTorchVideo's layout, or of ImageNet weights of torchvision's resnet50,
    which are inflated.
    say: is told what the encoder was made of, and what of a file was left out.

    Raises:
        UsageError: weights of another network, or that cannot be read.
    """
    state = load_local_weights(Path(weights))
    if "conv1.weight" not in state:  # which every ResNet of torchvision has
        left_out = [name for name in KINETICS_CLASSIFIER if state.pop(name, None) is not None]
        complaint = f"{weights} is neither PyTorchVideo's i3d_r50 nor torchvision's resnet50"
        load_strictly(encoder.backbone, state, complaint)
        say(f"encoder: {weights}, PyTorchVideo's i3d_r50; left out: {', '.join(left_out) or 'nothing'}")
        return
    flat = torchvision_net("resnet50", weights).state_dict()
    encoder.backbone.load_state_dict(inflated(flat, encoder.backbone.state_dict()))
    encoder.normalise_by(IMAGENET_MEAN, IMAGENET_STD)
    say(f"encoder: {weights}, a 2D ResNet-50 inflated over time; left out: fc.weight, fc.bias")


def inflated(flat: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the names and shapes in ``wanted``, made of a state dict of torchvision's resnet50.

    Each kernel is repeated along time and divided by how often, so that a video of one still frame gives, away from its
    ends, the features of the frame (Carreira & Zisserman 2017, section 2.4).
    """
    grown = {}
    for name, value in wanted.items():
        grown[name] = flat[_name_in_2d(name)]
        if value.ndim == 5:
            grown[name] = grown[name][:, :, None].expand_as(value) / value.shape[2]
    return grown


def _name_in_2d(name: str) -> str:
    """Return torchvision's name: blocks.3.res_blocks.0.branch2.norm_a.bias -> layer2.0.bn1.bias."""
    _, number, *parts = name.split(".")
    if number == "0":
        module, kind = parts
        return f"{'conv' if module == 'conv' else 'bn'}1.{kind}"
    stage = {"1": 1, "3": 2, "4": 3, "5": 4}[number]  # the third block is the pooling
    _, block, *inside, kind = parts
    if inside[0] == "branch2":
        layer, letter = inside[1].split("_")
        return f"layer{stage}.{block}.{'conv' if layer == 'conv' else 'bn'}{'abc'.index(letter) + 1}.{kind}"
    return f"layer{stage}.{block}.downsample.{0 if inside[0] == 'branch1_conv' else 1}.{kind}"
