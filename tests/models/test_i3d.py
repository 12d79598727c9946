"""I3D-R50 beside PyTorchVideo's, its weights from both kinds of file, and what inflation promises."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models import ClipwiseModel, build
from harec_deploy.models.encoders import IMAGENET_MEAN, IMAGENET_STD, frame_encoder
from harec_deploy.spec import HeadSpec

SIZE = Size(width=64, height=48)


def randomised(net: nn.Module) -> nn.Module:
    """Draw what fresh networks have at 0 or 1: an unnoticed norm_c would switch off its whole block."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.weight.data.uniform_(0.2, 0.6)  # so that features are around 1, as those of trained networks
            module.bias.data.uniform_(-0.2, 0.2)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture(scope="module")
def theirs() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of its packages calls torch.jit at import
        from pytorchvideo.models.hub.resnet import i3d_r50
    torch.manual_seed(0)
    return randomised(i3d_r50(pretrained=False))


@pytest.fixture(scope="module")
def flat() -> nn.Module:
    torch.manual_seed(0)
    return randomised(torchvision.models.resnet50(weights=None))


def loaded(path: Path, said: list[str] | None = None) -> ClipwiseModel:
    say = (said if said is not None else []).append
    model = build("i3d_r50_lstm", HeadSpec(hidden=4), 2, size=SIZE, frames=8, encoder_weights=str(path), say=say)
    assert isinstance(model, ClipwiseModel)
    return model.eval()


def kinetics_file(folder: Path, theirs: nn.Module) -> Path:
    """Write a checkpoint as PyTorchVideo publishes them, with things beside the weights."""
    path = folder / "I3D_8x8_R50.pyth"
    torch.save({"model_state": theirs.state_dict(), "epoch": 195, "cfg": "TRAIN:\n  DATASET: kinetics\n"}, path)
    return path


def test_features_are_pytorchvideos(theirs: Any, tmp_path: Path) -> None:
    said: list[str] = []
    encoder = loaded(kinetics_file(tmp_path, theirs), said).encoder
    assert said[0].endswith("PyTorchVideo's i3d_r50; left out: blocks.6.proj.weight, blocks.6.proj.bias")
    clips = torch.randint(0, 256, (2, 8, SIZE.height, SIZE.width, 3), dtype=torch.uint8)
    maps = (clips.permute(0, 4, 1, 2, 3) / 255 - 0.45) / 0.225  # as its pages tell to prepare clips
    with torch.inference_mode():
        for block in theirs.blocks[:-1]:
            maps = block(maps)
        wanted = maps.mean((3, 4)).transpose(1, 2)
        assert 0.1 < float(wanted.std()) < 10
        got = encoder(clips)
    assert got.shape == (2, 4, 2048)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)


def test_a_still_video_has_the_features_of_its_frame(flat: nn.Module, tmp_path: Path) -> None:
    """What inflation promises, at times from which no kernel reaches an end of the clip."""
    save_file(flat.state_dict(), tmp_path / "resnet50.safetensors")
    said: list[str] = []
    encoder = loaded(tmp_path / "resnet50.safetensors", said).encoder
    assert said[0].endswith("a 2D ResNet-50 inflated over time; left out: fc.weight, fc.bias")
    frame = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = frame_encoder("resnet50", str(tmp_path / "resnet50.safetensors")).eval()(frame)
        got = encoder(frame[:, None].expand(1, 40, 32, 32, 3))[0]
    torch.testing.assert_close(got[9:11], wanted.expand(2, -1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got[0], wanted[0], atol=1e-2)  # at the ends kernels see black


def test_the_normalisation_travels_with_the_weights(flat: nn.Module, tmp_path: Path) -> None:
    """A bundle's model is built without the file: what it was normalised by must be in its own weights."""
    torch.save(flat.state_dict(), tmp_path / "resnet50.pth")
    model = loaded(tmp_path / "resnet50.pth")
    again = build("i3d_r50_lstm", HeadSpec(hidden=4), 2, size=SIZE, frames=8).eval()
    again.load_state_dict(model.state_dict())
    white = torch.full((1, 1, 1, 1, 3), 255, dtype=torch.uint8)
    wanted = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(again.encoder.normalised(white)[0, :, 0, 0, 0], wanted)


class TestFilesThatDoNotFit:
    def refused(self, state: dict[str, Tensor], folder: Path) -> str:
        torch.save(state, folder / "w.pth")
        with pytest.raises(UsageError) as caught:
            loaded(folder / "w.pth")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_a_tensor_too_few_or_too_many_is_named(self, theirs: Any, tmp_path: Path) -> None:
        state = theirs.state_dict()
        del state["blocks.3.res_blocks.1.branch2.conv_b.weight"]
        state["blocks.7.extra"] = torch.zeros(1)
        told = self.refused(state, tmp_path)
        assert "is neither PyTorchVideo's i3d_r50 nor torchvision's resnet50: 1 tensors missing" in told
        assert "['blocks.3.res_blocks.1.branch2.conv_b.weight'], 1 unexpected ['blocks.7.extra']" in told

    def test_one_that_is_not_finite_is_named(self, theirs: Any, tmp_path: Path) -> None:
        state = {name: value.clone() for name, value in theirs.state_dict().items()}
        state["blocks.0.norm.bias"][3] = float("nan")
        assert "blocks.0.norm.bias holds NaN or infinity" in self.refused(state, tmp_path)

    def test_another_network(self, tmp_path: Path) -> None:
        state = torchvision.models.resnet18(weights=None).state_dict()
        assert "w.pth is not for resnet50: 165 tensors missing" in self.refused(state, tmp_path)

    def test_a_checkpoint_of_something_else(self, tmp_path: Path) -> None:
        assert "holds no state dict" in self.refused({"model_state": {"a": 1}}, tmp_path)  # type: ignore[dict-item]


def test_clips_that_are_too_small_are_refused() -> None:
    for size, frames, got in ((SIZE, 1, "1 of 64x48"), (Size(width=64, height=31), 8, "8 of 64x31")):
        with pytest.raises(UsageError, match=f"i3d_r50_lstm takes at least 2 frames of at least 32x32, not {got}"):
            build("i3d_r50_lstm", HeadSpec(), 2, size=size, frames=frames)
