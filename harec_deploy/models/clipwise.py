"""What clip-wise recognisers share: their encoders look at frames together, so no frame has features of its own."""

from torch import Tensor, nn

from harec_deploy.models.encoders import PixelEncoder


class ClipEncoder(PixelEncoder):
    """Wraps a backbone (B, 3, T, H, W) -> (B, T', D): clips uint8 (B, T, H, W, 3) -> features float32 (B, T', D)."""

    def forward(self, clips: Tensor) -> Tensor:
        """Return the features of clips over time."""
        features: Tensor = self.backbone(self.normalised(clips))
        return features


class ClipwiseModel(nn.Module):
    """A recogniser that exports as one graph: clips uint8 (B, T, H, W, 3) -> logits float32 (B, C)."""

    def __init__(self, encoder: ClipEncoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, clips: Tensor) -> Tensor:
        """Return the logits of clips."""
        logits: Tensor = self.head(self.encoder(clips))
        return logits
