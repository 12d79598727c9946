"""The recognisers as PyTorch modules; imported by export, training and the torch runner only.

A frame-wise recogniser is an encoder, frames -> features, and a head, the features of a clip -> logits:

    frames (N, H, W, 3) uint8 -> encoder -> features (N, D) float32
    features (B, T, D) float32 -> head -> logits (B, C) float32

A clip-wise one looks at frames together and is one graph:

    clips (B, T, H, W, 3) uint8 -> model -> logits (B, C) float32
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harec_deploy.bundle import Bundle
from harec_deploy.decode import Size
from harec_deploy.errors import BundleError, UsageError
from harec_deploy.models.clipwise import ClipwiseModel
from harec_deploy.models.cnn3d import cnn3d_lstm
from harec_deploy.models.convlstm import convlstm
from harec_deploy.models.encoders import BACKBONES, FrameEncoder, frame_encoder, one_line
from harec_deploy.models.head import LSTMHead
from harec_deploy.models.hub import local_file
from harec_deploy.models.i3d import i3d_r50_lstm, load_pretrained
from harec_deploy.models.lrcn import lrcn_encoder
from harec_deploy.sampling import ClipSampling
from harec_deploy.spec import HeadSpec

LSTM_OPTIONS = tuple(HeadSpec.__struct_fields__)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A recogniser by name, with the clip shape and head that it is used with unless told otherwise.

    head_options: the fields of the head that it uses. pretrained: its encoder may begin with weights from elsewhere.
    """

    name: str
    sampling: ClipSampling
    size: Size
    head: HeadSpec
    head_options: tuple[str, ...] = LSTM_OPTIONS
    pretrained: bool = True


_CLIP_224 = (ClipSampling(frames=16), Size(width=224, height=224))

ARCHITECTURES = {
    each.name: each
    for each in (
        # Long-term Recurrent Convolutional Networks, Donahue et al. 2015, in the small form that tutorials train on
        # UCF-50, as they do convlstm.
        Architecture(
            "lrcn",
            ClipSampling(frames=20),
            Size(width=64, height=64),
            HeadSpec(hidden=64, dropout=0.25, pool="last"),
            pretrained=False,
        ),
        *(Architecture(f"{backbone}_lstm", *_CLIP_224, HeadSpec()) for backbone in BACKBONES),
        Architecture(
            "convlstm",
            ClipSampling(frames=20),
            Size(width=64, height=64),
            HeadSpec(dropout=0.2),
            head_options=("dropout",),
            pretrained=False,
        ),
        Architecture(
            "cnn3d_lstm",
            ClipSampling(frames=16),
            Size(width=112, height=112),
            HeadSpec(hidden=128, dense=64),
            pretrained=False,
        ),
        Architecture("i3d_r50_lstm", *_CLIP_224, HeadSpec(dense=128)),
    )
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


Model = FramewiseModel | ClipwiseModel
CLIPWISE = {"convlstm": convlstm, "cnn3d_lstm": cnn3d_lstm, "i3d_r50_lstm": i3d_r50_lstm}


def build(
    architecture: str,
    head: HeadSpec,
    classes: int,
    *,
    size: Size,
    frames: int | None = None,
    encoder_weights: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Model:
    """Return a recogniser with fresh weights, its encoder pre-trained if ``encoder_weights`` says so.

    frames: of a clip, which ``convlstm`` takes no others of; the architecture's own by default.
    encoder_weights: what ``local_file`` takes: "imagenet", "kinetics400", an address, a path; None for random ones.
    say: is told what was downloaded, and what of a file was left out, where that is not plain from the architecture.

    Raises:
        UsageError: no such architecture, clips that are too small for it, or weights that do not fit it or are not to
            be had.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {architecture!r}; allowed are {', '.join(ARCHITECTURES)}")
    known = ARCHITECTURES[architecture]
    weights = None if encoder_weights is None else str(local_file(encoder_weights, architecture, say))
    if architecture in CLIPWISE:
        count = known.sampling.frames if frames is None else frames
        model = CLIPWISE[architecture](head, classes, frames=count, size=size)
        if weights is not None:
            load_pretrained(model.encoder, weights, say)
        return model
    backbone = architecture.removesuffix("_lstm")
    encoder = lrcn_encoder(size) if backbone == "lrcn" else frame_encoder(backbone, weights)
    return FramewiseModel(encoder, LSTMHead(encoder.feature_dim, classes, head))


def from_bundle(bundle: Bundle) -> Model:
    """Return the bundle's recogniser with its weights, in eval mode on the CPU: the reference of every proof.

    Raises:
        BundleError: the weights do not fit the architecture.
    """
    spec = bundle.spec
    try:
        model = build(spec.architecture, spec.head, len(spec.classes), size=spec.size, frames=spec.sampling.frames)
        model.load_state_dict(load_file(bundle.path(spec.weights)))
    except (RuntimeError, UsageError) as error:
        raise BundleError(f"{bundle.folder}: weights and architecture do not fit: {one_line(error)}") from None
    if isinstance(model, FramewiseModel):
        # Frames come channels last; depthwise convolutions take twice the time where the weights do not.
        model.to(memory_format=torch.channels_last)
    return model.eval()
