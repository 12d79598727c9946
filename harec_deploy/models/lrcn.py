"""The small encoder of LRCN: four convolutions over frames of about 64x64, trained from scratch."""

import math

from torch import Tensor, nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models.encoders import FrameEncoder

CHANNELS = (16, 32, 64, 64)
POOLING = (4, 4, 2, 2)  # 64x64 -> 1x1


class _SmallCNN(nn.Module):
    """Convolution, batch normalisation, ReLU and pooling, four times: (N, 3, H, W) -> (N, D)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, channels, pooling in zip((3, *CHANNELS), CHANNELS, POOLING, strict=False):
            layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.MaxPool2d(pooling)]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of normalised frames."""
        maps: Tensor = self.layers(pixels)
        return maps.flatten(1)


def lrcn_encoder(size: Size) -> FrameEncoder:
    """Return the encoder for frames of ``size``; pixels are scaled to [-1, 1].

    Raises:
        UsageError: the frames are smaller than the pooling.
    """
    shrink = math.prod(POOLING)
    if min(size.width, size.height) < shrink:
        raise UsageError(f"lrcn takes frames of at least {shrink}x{shrink}, not {size.width}x{size.height}")
    feature_dim = (size.width // shrink) * (size.height // shrink) * CHANNELS[-1]
    return FrameEncoder(_SmallCNN(), feature_dim, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
