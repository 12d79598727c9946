"""The recognisers as modules: shapes, weights from files, and what a hostile file cannot do."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models import ARCHITECTURES, build
from harec_deploy.models.encoders import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, frame_encoder
from harec_deploy.models.head import LSTMHead
from harec_deploy.spec import HeadSpec


@pytest.mark.parametrize("name", sorted({"lrcn", *(f"{backbone}_lstm" for backbone in BACKBONES)}))
def test_every_frame_wise_architecture_takes_raw_clips(name: str) -> None:
    size = ARCHITECTURES[name].size if name == "lrcn" else Size(width=64, height=64)
    model = build(name, ARCHITECTURES[name].head, 5, size=size).eval()
    clips = torch.randint(0, 256, (2, 3, size.height, size.width, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert model(clips).shape == (2, 5)
        assert model.encoder(clips[0]).shape == (3, model.encoder.feature_dim)


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_features_are_torchvisions(backbone: str) -> None:
    """The encoder is torchvision's network up to its classifier, with ImageNet normalisation in front."""
    torch.manual_seed(0)
    net = torchvision.models.get_model(backbone, weights=None).eval()
    encoder = frame_encoder(backbone, None).eval()
    encoder.backbone.trunk.load_state_dict(BACKBONES[backbone][0](net).state_dict())
    frames = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    pixels = frames.permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    head = next(name for name in ("fc", "classifier") if hasattr(net, name))
    setattr(net, head, nn.Identity())
    with torch.inference_mode():
        torch.testing.assert_close(encoder(frames), net((pixels - mean) / std), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("pool", ["max", "mean", "last"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_head_pools_over_time(pool: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    head = LSTMHead(8, 3, HeadSpec(hidden=4, pool=pool, bidirectional=bidirectional, dropout=0)).eval()  # type: ignore[arg-type]
    features = torch.randn(2, 5, 8)
    states, (last, _) = head.lstm(head.norm(features))
    wanted = {"max": states.amax(1), "mean": states.mean(1), "last": torch.cat(list(last), dim=1)}[pool]
    torch.testing.assert_close(head(features), head.classifier(wanted))


class TestFrozenStages:
    SMALL = Size(width=48, height=40)

    def trained(self, name: str, but_last: int) -> tuple[set[str], set[str]]:
        """Return the names of encoder weights, and of statistics, that one step of training changes."""
        torch.manual_seed(0)
        model = build(name, HeadSpec(hidden=4), 2, size=self.SMALL, frames=4)
        model.encoder.freeze(but_last)
        before = {key: value.clone() for key, value in model.encoder.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        clips = torch.randint(0, 256, (2, 4, 40, 48, 3), dtype=torch.uint8)
        nn.functional.cross_entropy(model.train()(clips), torch.tensor([0, 1])).backward()
        optimizer.step()
        changed = {key for key, value in model.encoder.state_dict().items() if not torch.equal(value, before[key])}
        statistics = {key for key in changed if "running" in key or "num_batches" in key}
        return changed - statistics, statistics

    @pytest.mark.parametrize(
        ("name", "last", "before"),
        [
            ("resnet18_lstm", ("backbone.trunk.7.", "backbone.trunk.6."), "backbone.trunk.5."),
            ("mobilenet_v2_lstm", ("backbone.trunk.18.", "backbone.trunk.17."), "backbone.trunk.16."),
            ("i3d_r50_lstm", ("backbone.blocks.5.", "backbone.blocks.4."), "backbone.blocks.3."),
        ],
    )
    def test_only_the_last_ones_are_trained(self, name: str, last: tuple[str, str], before: str) -> None:
        for but_last in (0, 1, 2):
            weights, statistics = self.trained(name, but_last)
            assert all(key.startswith(last[:but_last]) for key in weights)
            assert all(any(key.startswith(stage) for key in weights) for stage in last[:but_last])
            assert not statistics
        weights, _ = self.trained(name, 3)
        assert any(key.startswith(before) for key in weights)

    def test_more_than_there_are_is_refused(self) -> None:
        encoder = frame_encoder("resnet18", None)
        with pytest.raises(UsageError, match="the encoder has 6 stages: allowed are 0 to 5 to train"):
            encoder.freeze(6)
        encoder.freeze(5)

    @pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
    def test_two_parts_are_the_whole(self, name: str) -> None:
        torch.manual_seed(0)
        encoder = frame_encoder(name, None).eval()
        frames = torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8)
        begin, rest = encoder.cut(2)
        torch.testing.assert_close(rest(begin(frames)), encoder(frames))
        assert {id(p) for part in (begin, rest) for p in part.parameters()} == {id(p) for p in encoder.parameters()}


def test_lrcn_refuses_frames_it_would_pool_away() -> None:
    with pytest.raises(UsageError, match="lrcn takes frames of at least 64x64, not 48x64"):
        build("lrcn", HeadSpec(), 2, size=Size(width=48, height=64))


class TestLocalWeights:
    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return torchvision.models.get_model("mobilenet_v2", weights=None).state_dict()

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_are_loaded(self, tmp_path: Path, state: dict[str, torch.Tensor], suffix: str) -> None:
        path = tmp_path / f"w.{suffix}"
        (torch.save if suffix == "pth" else save_file)(state, path)
        encoder = frame_encoder("mobilenet_v2", str(path))
        assert torch.equal(encoder.backbone.trunk[0][0].weight, state["features.0.0.weight"])

    def test_of_another_network_are_refused_with_names(self, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UsageError, match=r"is not for resnet18: \d+ tensors missing .*, \d+ unexpected"):
            frame_encoder("resnet18", str(tmp_path / "w.pth"))
        del state["features.0.0.weight"]
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UsageError, match=r"1 tensors missing \['features\.0\.0\.weight'\]"):
            frame_encoder("mobilenet_v2", str(tmp_path / "w.pth"))

    def test_of_another_shape_are_refused(self, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
        state["features.0.0.weight"] = torch.zeros(1)
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(UsageError, match=r"is not for mobilenet_v2: .*size mismatch") as caught:
            frame_encoder("mobilenet_v2", str(tmp_path / "w.pth"))
        assert "\n" not in str(caught.value)

    def test_a_pickle_bomb_does_not_go_off(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"

        class Bomb:
            def __reduce__(self) -> object:
                return os.mkdir, (str(marker),)

        for name, write in (("zip.pth", torch.save), ("raw.pth", lambda b, p: p.write_bytes(pickle.dumps(b)))):
            write(Bomb(), tmp_path / name)
            with pytest.raises(UsageError, match="holds no plain weights"):
                frame_encoder("resnet18", str(tmp_path / name))
        assert not marker.exists()

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 torn"])
    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    def test_a_damaged_file_is_one_line(self, tmp_path: Path, content: bytes, suffix: str) -> None:
        (tmp_path / f"w.{suffix}").write_bytes(content)
        with pytest.raises(UsageError, match="holds no plain weights") as caught:
            frame_encoder("resnet18", str(tmp_path / f"w.{suffix}"))
        assert "\n" not in str(caught.value)

    def test_a_missing_file_is_named(self) -> None:
        with pytest.raises(UsageError, match=r"encoder weights nowhere\.pth not found: give a file"):
            frame_encoder("resnet18", "nowhere.pth")

    def test_a_list_is_no_state_dict(self, tmp_path: Path) -> None:
        torch.save([torch.zeros(1)], tmp_path / "w.pth")
        with pytest.raises(UsageError, match="holds no state dict"):
            frame_encoder("resnet18", str(tmp_path / "w.pth"))
