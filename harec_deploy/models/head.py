"""The sequence models: features of a clip over time in, logits out."""

import torch
from torch import Tensor, nn

from harec_deploy.spec import HeadSpec


class LSTMHead(nn.Module):
    """Normalisation, LSTM, pooling over time, dense layer, dropout, classifier: (B, T, D) float32 -> (B, C) float32."""

    def __init__(self, feature_dim: int, classes: int, spec: HeadSpec) -> None:
        super().__init__()
        self.pool = spec.pool
        self.hidden = spec.hidden
        self.norm = nn.LayerNorm(feature_dim) if spec.layer_norm else nn.Identity()
        self.lstm = nn.LSTM(
            feature_dim,
            spec.hidden,
            spec.layers,
            batch_first=True,
            bidirectional=spec.bidirectional,
            dropout=spec.dropout if spec.layers > 1 else 0.0,
        )
        width = spec.hidden * (2 if spec.bidirectional else 1)
        self.dense: nn.Module = nn.Identity()
        if spec.dense:
            self.dense = nn.Sequential(nn.Dropout(spec.dropout), nn.Linear(width, spec.dense), nn.ReLU())
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(spec.dense or width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of clips by their features."""
        states, _ = self.lstm(self.norm(features))  # (B, T, hidden), both directions side by side
        logits: Tensor = self.classifier(self.dropout(self.dense(self._pooled(states))))
        return logits

    def _pooled(self, states: Tensor) -> Tensor:
        if self.pool == "max":
            return states.amax(1)
        if self.pool == "mean":
            return states.mean(1)
        # The backward direction has read the whole clip at its first step, not its last.
        return torch.cat([states[:, -1, : self.hidden], states[:, 0, self.hidden :]], dim=1)


class FlatHead(nn.Module):
    """One dense layer over all features of a clip: (B, T, D) float32 -> (B, C) float32, T fixed."""

    def __init__(self, frames: int, feature_dim: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(frames * feature_dim, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of clips by their features."""
        logits: Tensor = self.classifier(features.flatten(1))
        return logits
