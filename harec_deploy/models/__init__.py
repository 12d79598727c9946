"""The recognisers as PyTorch modules; imported by export and training only.

A frame-wise recogniser is an encoder, frames -> features, and a head, the features of a clip -> logits:

    frames (N, H, W, 3) uint8 -> encoder -> features (N, D) float32
    features (B, T, D) float32 -> head -> logits (B, C) float32
"""

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harec_deploy.bundle import Bundle, HeadSpec
from harec_deploy.decode import Size
from harec_deploy.errors import BundleError, UsageError
from harec_deploy.models.encoders import BACKBONES, FrameEncoder, frame_encoder, one_line
from harec_deploy.models.head import LSTMHead
from harec_deploy.models.lrcn import lrcn_encoder
from harec_deploy.sampling import ClipSampling


@dataclass(frozen=True, slots=True)
class Architecture:
    """A recogniser by name, with the clip shape and head that it is used with unless told otherwise."""

    name: str
    sampling: ClipSampling
    size: Size
    head: HeadSpec


_LSTM_224 = (ClipSampling(frames=16), Size(width=224, height=224), HeadSpec())

ARCHITECTURES = {
    # Long-term Recurrent Convolutional Networks, Donahue et al. 2015, in the small form that tutorials train on UCF-50.
    "lrcn": Architecture(
        "lrcn", ClipSampling(frames=20), Size(width=64, height=64), HeadSpec(hidden=64, dropout=0.25, pool="last")
    ),
    **{f"{backbone}_lstm": Architecture(f"{backbone}_lstm", *_LSTM_224) for backbone in BACKBONES},
}


class FramewiseModel(nn.Module):
    """Encoder and head together: clips uint8 (B, T, H, W, 3) -> logits float32 (B, C)."""

    def __init__(self, encoder: FrameEncoder, head: LSTMHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits of clips."""
        features = self.encoder(clips.flatten(0, 1))  # (B * T, D)
        logits: Tensor = self.head(features.unflatten(0, clips.shape[:2]))
        return logits


def build(
    architecture: str, head: HeadSpec, classes: int, *, size: Size, encoder_weights: str | None = None
) -> FramewiseModel:
    """Return a recogniser with fresh weights, its encoder pre-trained if ``encoder_weights`` says so.

    encoder_weights: "imagenet" for torchvision's weights, the path of a local file, or None for random ones.

    Raises:
        UsageError: no such architecture, or weights that do not fit it.
    """
    encoder = _encoder(architecture, size, encoder_weights)
    return FramewiseModel(encoder, LSTMHead(encoder.feature_dim, classes, head))


def _encoder(architecture: str, size: Size, encoder_weights: str | None) -> FrameEncoder:
    if architecture not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {architecture!r}; allowed are {', '.join(ARCHITECTURES)}")
    if architecture == "lrcn":
        if encoder_weights is not None:
            raise UsageError("lrcn has no pre-trained encoder: leave --encoder-weights out")
        return lrcn_encoder(size)
    return frame_encoder(architecture.removesuffix("_lstm"), encoder_weights)


def from_bundle(bundle: Bundle) -> FramewiseModel:
    """Return the bundle's recogniser with its weights, in eval mode on the CPU: the reference of every proof.

    Raises:
        BundleError: the weights do not fit the architecture.
    """
    spec = bundle.spec
    try:
        model = build(spec.architecture, spec.head, len(spec.classes), size=spec.size)
        model.load_state_dict(load_file(bundle.path(spec.weights)))
    except (RuntimeError, UsageError) as error:
        raise BundleError(f"{bundle.folder}: weights and architecture do not fit: {one_line(error)}") from None
    # Frames come channels last; depthwise convolutions take twice the time where the weights do not.
    return model.to(memory_format=torch.channels_last).eval()
