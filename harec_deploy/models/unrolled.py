"""An LSTM written out step by step, for runtimes that run ONNX's LSTM as a loop.

TensorRT imports the ONNX operator as a loop with both matrix products inside. Here the product with the inputs is one
for all steps of the clip, and what is left of a step is one small product and arithmetic that fuses.
"""

import torch
from torch import Tensor, nn


class UnrolledLSTM(nn.Module):
    """The same function as an ``nn.LSTM``: (B, T, D) float32 -> (B, T, hidden x directions) float32.

    Exported with a fixed T, it is a straight line of operators without a loop, for any B.
    """

    def __init__(self, lstm: nn.LSTM, dtype: torch.dtype = torch.float32) -> None:
        """Take the weights of ``lstm``.

        dtype: of the matrix products; gates and cell states are float32 in any case, for they add up over time.

        Raises:
            ValueError: the LSTM has projections or no biases, or takes the time first.
        """
        super().__init__()
        if not lstm.batch_first or lstm.proj_size or not lstm.bias:
            raise ValueError("only an LSTM with batch_first, biases and no projections can be unrolled")
        ends = ("", "_reverse") if lstm.bidirectional else ("",)
        self.layers = nn.ModuleList(
            nn.ModuleList(_Direction(lstm, f"_l{layer}{end}", dtype) for end in ends)
            for layer in range(lstm.num_layers)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, None]:
        """Return the states of the last layer, both directions side by side, and None for its last states."""
        states = features
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            states = torch.cat([direction(states) for direction in layer], dim=2)
        return states, None


class _Direction(nn.Module):
    """One layer in one direction: (B, T, D) -> (B, T, hidden)."""

    def __init__(self, lstm: nn.LSTM, suffix: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.reverse = suffix.endswith("_reverse")
        weights = {
            name: getattr(lstm, name + suffix).detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        self.register_buffer("inputs", _sigmoids_first(weights["weight_ih"]).T.to(dtype).contiguous())  # (D, 4 hidden)
        self.register_buffer("hidden", _sigmoids_first(weights["weight_hh"]).T.to(dtype).contiguous())
        self.register_buffer("bias", _sigmoids_first(weights["bias_ih"] + weights["bias_hh"]).float())

    def forward(self, states: Tensor) -> Tensor:
        """Return the hidden state of every step."""
        inputs, hidden = self.get_buffer("inputs"), self.get_buffer("hidden")
        gates = torch.matmul(states.to(inputs.dtype), inputs).float() + self.get_buffer("bias")  # (B, T, 4 hidden)
        steps = torch.split(gates, 1, dim=1)
        outputs: list[Tensor] = []  # each (B, 1, hidden)
        cell = None
        for step in reversed(steps) if self.reverse else steps:
            if outputs:  # the first step begins with zeros
                step = step + torch.matmul(outputs[-1].to(hidden.dtype), hidden).float()
            sigmoids, new = torch.split(step, [3 * len(hidden), len(hidden)], dim=2)
            write, keep, show = sigmoids.sigmoid().chunk(3, dim=2)
            added = write * new.tanh()
            cell = added if cell is None else keep * cell + added
            outputs.append(show * cell.tanh())
        return torch.cat(outputs[::-1] if self.reverse else outputs, dim=1)


def _sigmoids_first(weights: Tensor) -> Tensor:
    """Reorder PyTorch's gates i, f, g, o to i, f, o, g: three quarters go through one sigmoid."""
    i, f, g, o = weights.chunk(4)
    return torch.cat([i, f, o, g])
