"""A stack of convolutional LSTMs over small frames, as tutorials train it on UCF-50.

ConvLSTM is of Shi et al. 2015, "Convolutional LSTM Network: A Machine Learning Approach for Precipitation Nowcasting"
(https://arxiv.org/abs/1506.04214), here without its peepholes: the layer is Keras' ConvLSTM2D
(https://keras.io/api/layers/recurrent_layers/conv_lstm2d/), and with its weights gives its outputs.
"""

import torch
from torch import Tensor, nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models.clipwise import ClipEncoder, ClipwiseModel
from harec_deploy.models.head import FlatHead
from harec_deploy.spec import HeadSpec

FILTERS = (4, 8, 14, 16)
KERNEL = 3
POOLING = 2
MEAN = STD = (0.5, 0.5, 0.5)


class ConvLSTM(nn.Module):
    """Maps over time: (B, T, C, H, W) -> (B, T, F, H - 2, W - 2).

    The input is convolved without padding, the state with; gates are input, forget, cell, output, as Keras has them.
    recurrent_dropout: share of the state that each gate does not see, the same at all times of a clip.
    """

    def __init__(self, channels: int, filters: int, recurrent_dropout: float) -> None:
        super().__init__()
        self.input = nn.Conv2d(channels, 4 * filters, KERNEL)
        self.recurrent = nn.Conv2d(filters, 4 * filters, KERNEL, padding=KERNEL // 2, bias=False)
        self.recurrent_dropout = recurrent_dropout
        # As Keras begins: a forget gate that is shut would hide early frames from the first epochs.
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.orthogonal_(self.recurrent.weight)
        bias = self.input.bias
        assert bias is not None
        nn.init.zeros_(bias)
        nn.init.ones_(bias[filters : 2 * filters])

    def forward(self, maps: Tensor) -> Tensor:
        """Return the state at all times."""
        count = maps.shape[1]
        driven = self.input(maps.flatten(0, 1)).unflatten(0, (-1, count))  # (B, T, 4F, H', W'), of all times at once
        shown, forgotten, drawn, told = driven[:, 0].chunk(4, 1)
        cell = shown.sigmoid() * drawn.tanh()  # before the first frame there is nothing to remember
        states = [told.sigmoid() * cell.tanh()]
        masks = self._masks(states[0])
        for t in range(1, count):
            gates = driven[:, t] + self._recalled(states[-1], masks)
            shown, forgotten, drawn, told = gates.chunk(4, 1)
            cell = forgotten.sigmoid() * cell + shown.sigmoid() * drawn.tanh()
            states.append(told.sigmoid() * cell.tanh())
        return torch.stack(states, 1)

    def _masks(self, state: Tensor) -> Tensor | None:
        """Return what each gate sees of the state, (B, 4F, H', W'), or None for all of it."""
        if not self.training or not self.recurrent_dropout:
            return None
        return nn.functional.dropout(torch.ones_like(state).repeat(1, 4, 1, 1), self.recurrent_dropout)

    def _recalled(self, state: Tensor, masks: Tensor | None) -> Tensor:
        if masks is None:
            recalled: Tensor = self.recurrent(state)
            return recalled
        # A group of filters for each gate, so that each convolves its own masked copy of the state.
        copies = state.repeat(1, 4, 1, 1) * masks
        return nn.functional.conv2d(copies, self.recurrent.weight, padding=KERNEL // 2, groups=4)


class _Stack(nn.Module):
    """ConvLSTM, pooling and dropout, four times: (B, 3, T, H, W) -> (B, T, D)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConvLSTM(before, filters, dropout) for before, filters in zip((3, *FILTERS), FILTERS, strict=False)
        )
        self.pool = nn.MaxPool2d(POOLING, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of normalised clips."""
        maps = pixels.transpose(1, 2)
        count = maps.shape[1]
        for number, layer in enumerate(self.layers):
            if number:
                maps = self.dropout(maps)
            maps = self.pool(layer(maps).flatten(0, 1)).unflatten(0, (-1, count))  # frame by frame
        return maps.flatten(2)


def convlstm(head: HeadSpec, classes: int, *, frames: int, size: Size) -> ClipwiseModel:
    """Return the model with fresh weights; of ``head``, its dropout counts.

    Raises:
        UsageError: frames that are too small for four layers.
    """
    height, width = _side(size.height), _side(size.width)
    if not height or not width:
        least = next(side for side in range(1, 99) if _side(side))
        raise UsageError(f"convlstm takes frames of at least {least}x{least}, not {size.width}x{size.height}")
    feature_dim = FILTERS[-1] * height * width
    encoder = ClipEncoder(_Stack(head.dropout), feature_dim, MEAN, STD)
    return ClipwiseModel(encoder, FlatHead(frames, feature_dim, classes))


def _side(pixels: int) -> int:
    """Return how many cells of a side are left after all layers, 64 -> 3, or 0 where one has too few to pool."""
    for _ in FILTERS:
        shown = pixels - KERNEL + 1
        if shown < POOLING:  # half a window would do here, but not in every runtime
            return 0
        pixels = -(-shown // POOLING)
    return pixels
