"""The small 3D CNN with its LSTM, and what the clip-wise models have in common."""

import pytest
import torch
from torch import nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models import CLIPWISE, build
from harec_deploy.spec import HeadSpec

SMALL = Size(width=48, height=40)


def test_it_is_its_layers_one_after_the_other() -> None:
    """Three convolutions with normalisation and pooling, each time flattened, LSTM, dense layer, classifier."""
    torch.manual_seed(0)
    model = build("cnn3d_lstm", HeadSpec(hidden=6, dense=5, pool="last"), 3, size=SMALL, frames=6).eval()
    clips = torch.randint(0, 256, (2, 6, 40, 48, 3), dtype=torch.uint8)
    kinds = [type(layer) for layer in model.encoder.backbone.layers]
    assert kinds == [nn.Conv3d, nn.BatchNorm3d, nn.ReLU, nn.MaxPool3d] * 3
    maps = clips.permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.inference_mode():
        maps = model.encoder.backbone.layers(maps)
        assert maps.shape == (2, 64, 3, 2, 3)
        steps = torch.stack([maps[:, :, t].flatten(1) for t in range(3)], 1)
        torch.testing.assert_close(model.encoder(clips), steps, atol=1e-5, rtol=1e-5)
        head = model.head
        states, _ = head.lstm(head.norm(steps))
        dense = head.dense[1](states[:, -1]).relu()
        assert dense.shape == (2, 5)
        torch.testing.assert_close(model(clips), head.classifier(dense), atol=1e-5, rtol=1e-5)


def test_it_takes_frames_of_112_and_224() -> None:
    for side in (112, 224):
        with torch.device("meta"):
            model = build("cnn3d_lstm", HeadSpec(), 3, size=Size(width=side, height=side)).eval()
            assert model(torch.zeros((1, 16, side, side, 3), dtype=torch.uint8)).shape == (1, 3)


def test_clips_that_would_be_pooled_away_are_refused() -> None:
    for size, frames, got in ((SMALL, 1, "1 of 48x40"), (Size(width=48, height=15), 8, "8 of 48x15")):
        with pytest.raises(UsageError, match=f"cnn3d_lstm takes at least 2 frames of at least 16x16, not {got}"):
            build("cnn3d_lstm", HeadSpec(), 2, size=size, frames=frames)


@pytest.mark.parametrize("name", CLIPWISE)
def test_clips_of_a_batch_do_not_see_each_other(name: str) -> None:
    torch.manual_seed(1)
    model = build(name, HeadSpec(hidden=4), 3, size=SMALL, frames=5).eval()
    clips = torch.randint(0, 256, (3, 5, 40, 48, 3), dtype=torch.uint8)
    with torch.inference_mode():
        together, alone = model(clips), torch.cat([model(clip[None]) for clip in clips])
    assert together.shape == (3, 3)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CLIPWISE)
def test_the_order_of_frames_matters(name: str) -> None:
    torch.manual_seed(2)
    model = build(name, HeadSpec(hidden=4, pool="last"), 3, size=SMALL, frames=6).eval()
    clips = torch.randint(0, 256, (1, 6, 40, 48, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert float((model(clips) - model(clips.flip(1))).abs().max()) > 1e-4


@pytest.mark.parametrize("name", CLIPWISE)
def test_every_weight_learns(name: str) -> None:
    torch.manual_seed(3)
    model = build(name, HeadSpec(hidden=4, dropout=0), 2, size=SMALL, frames=4).train()
    clips = torch.randint(0, 256, (2, 4, 40, 48, 3), dtype=torch.uint8)
    nn.functional.cross_entropy(model(clips), torch.tensor([0, 1])).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", CLIPWISE)
def test_a_frozen_encoder_stays_as_it_is_in_training(name: str) -> None:
    torch.manual_seed(3)
    model = build(name, HeadSpec(hidden=4), 2, size=SMALL, frames=4)
    model.encoder.freeze()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()
    model(torch.randint(0, 256, (2, 4, 40, 48, 3), dtype=torch.uint8)).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert "head.classifier.weight" in changed
    assert not any(key.startswith("encoder.") for key in changed)


def test_only_encoders_that_others_have_trained_take_weights() -> None:
    for name in ("convlstm", "cnn3d_lstm", "lrcn"):
        with pytest.raises(UsageError, match=f"{name} has no pre-trained encoder: leave --encoder-weights out"):
            build(name, HeadSpec(), 2, size=Size(width=64, height=64), encoder_weights="imagenet")
