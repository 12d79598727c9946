"""Models whose types are part of them: half precision where it is safe, float32 where it is not.

A runtime such as TensorRT 11 computes in the types that the graph names, so a model is cast before it is exported. What
goes in and out keeps its type. Convolutions and the LSTM's products are half; pixels are normalised, features
normalised and pooled, gates and cell states added up, and logits computed in float32.
"""

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from harec_deploy.errors import UsageError
from harec_deploy.models.encoders import FrameEncoder
from harec_deploy.models.head import LSTMHead
from harec_deploy.models.unrolled import UnrolledLSTM

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LSTMS = ("op", "unroll")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class HalfPart(nn.Module):
    """A module with its weights in half precision: float32 in, float32 out."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        # Folded while all is float32: a variance or its inverse may leave the range of fp16.
        self.module = _without_batch_norm(module).to(dtype)
        self.dtype = dtype

    def forward(self, values: Tensor) -> Tensor:
        """Return the module's output."""
        result: Tensor = self.module(values.to(self.dtype))
        return result.float()


class HalfLSTM(nn.Module):
    """An LSTM in half precision: (B, T, D) float32 -> (B, T, hidden x directions) float32."""

    def __init__(self, lstm: nn.LSTM, dtype: torch.dtype) -> None:
        super().__init__()
        self.lstm = copy.deepcopy(lstm).to(dtype)
        self.dtype = dtype

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        """Return the states of the last layer, and None for its last states."""
        return self.lstm(features.to(self.dtype))[0].float(), None


class SpatialMean(nn.Module):
    """The mean over height and width, added up in float32: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mean of each map in the type of the maps."""
        return maps.float().mean((2, 3), keepdim=True).to(maps.dtype)


def typed_encoder(encoder: FrameEncoder, precision: str) -> FrameEncoder:
    """Return a copy of a frame encoder for ``precision``: uint8 (N, H, W, 3) -> float32 (N, D).

    Raises:
        UsageError: no such precision.
    """
    check_types(precision)
    dtype, made = DTYPES[precision], copy.deepcopy(encoder)
    _plain_pooling(made)
    if dtype != torch.float32:
        # The mean that ends a torchvision trunk stays outside, in float32.
        owner, name = (made.backbone, "trunk") if hasattr(made.backbone, "trunk") else (made, "backbone")
        setattr(owner, name, HalfPart(getattr(owner, name), dtype))
    return made.eval()


def typed_head(head: LSTMHead, precision: str, lstm: str) -> LSTMHead:
    """Return a copy of a head for ``precision``: float32 (B, T, D) -> float32 (B, C).

    lstm: "op" keeps the LSTM one operator, "unroll" writes its steps out.

    Raises:
        UsageError: no such precision, or no such form of the LSTM.
    """
    check_types(precision, lstm)
    dtype, made = DTYPES[precision], copy.deepcopy(head)
    if lstm == "unroll":
        made.add_module("lstm", UnrolledLSTM(head.lstm, dtype))
    elif dtype != torch.float32:
        made.add_module("lstm", HalfLSTM(head.lstm, dtype))
    return made.eval()


def check_types(precision: str, lstm: str = "op") -> None:
    """Raise UsageError for a precision, or a form of the LSTM, that no graph has."""
    if precision not in DTYPES:
        raise UsageError(f"unknown precision {precision!r} for a graph; allowed are {', '.join(DTYPES)}")
    if lstm not in LSTMS:
        raise UsageError(f"unknown form of the LSTM {lstm!r}; allowed are {', '.join(LSTMS)}")


def _plain_pooling(module: nn.Module) -> None:
    """Replace pooling to one pixel, which would export as a chain of gathers with the shape of the uint8 input."""
    for owner in list(module.modules()):
        for name, child in owner.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(owner, name, SpatialMean())


def _without_batch_norm(module: nn.Module) -> nn.Module:
    """Return the module with every batch normalisation that follows a convolution folded into its weights."""
    traced = fx.symbolic_trace(module.eval())
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = traced.get_submodule(str(before.target)), traced.get_submodule(str(node.target))
        if isinstance(convolution, _CONVOLUTIONS) and isinstance(norm, _NORMS):
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
