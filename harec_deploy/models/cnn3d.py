"""A small 3D CNN with an LSTM over what it leaves of time, trained from scratch on frames of 112 or 224 pixels.

Three convolutions over space and time, after Tran et al. 2015, "Learning Spatiotemporal Features with 3D Convolutional
Networks" (https://arxiv.org/abs/1412.0767), whose finding was that 3x3x3 kernels do best.
"""

import math

from torch import Tensor, nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models.clipwise import ClipEncoder, ClipwiseModel
from harec_deploy.models.head import LSTMHead
from harec_deploy.spec import HeadSpec

CHANNELS = (16, 32, 64)
TIME_POOLING = (1, 2, 1)  # 16 frames -> 8 steps of the LSTM
SIDE_POOLING = (4, 2, 2)  # 112x112 -> 7x7
MEAN = STD = (0.5, 0.5, 0.5)


class _Convolutions(nn.Module):
    """Convolution, batch normalisation, ReLU and pooling, three times: (B, 3, T, H, W) -> (B, T / 2, D)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        shapes = zip((3, *CHANNELS), CHANNELS, TIME_POOLING, SIDE_POOLING, strict=False)
        for before, channels, time, side in shapes:
            layers += [nn.Conv3d(before, channels, 3, padding=1, bias=False), nn.BatchNorm3d(channels), nn.ReLU()]
            layers += [nn.MaxPool3d((time, side, side))]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of normalised clips."""
        maps: Tensor = self.layers(pixels)
        return maps.transpose(1, 2).flatten(2)


def cnn3d_lstm(head: HeadSpec, classes: int, *, frames: int, size: Size) -> ClipwiseModel:
    """Return the model with fresh weights.

    Raises:
        UsageError: clips that are smaller than the pooling.
    """
    shortest, least = math.prod(TIME_POOLING), math.prod(SIDE_POOLING)
    if frames < shortest or min(size.width, size.height) < least:
        got = f"{frames} of {size.width}x{size.height}"
        raise UsageError(f"cnn3d_lstm takes at least {shortest} frames of at least {least}x{least}, not {got}")
    feature_dim = (size.width // least) * (size.height // least) * CHANNELS[-1]
    encoder = ClipEncoder(_Convolutions(), feature_dim, MEAN, STD)
    return ClipwiseModel(encoder, LSTMHead(feature_dim, classes, head))
