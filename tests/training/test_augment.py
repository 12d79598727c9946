"""Augmentation changes all frames of a clip alike, as far as it is told, and only for training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harec_deploy.bundle import load
from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.sampling import ClipSampling
from tests.training.test_fit import report, same, small
from training import recipes
from training.augment import Augmentation
from training.datasets import Sample, scan_folders
from training.features import DecodedFrames, Grid, StoredFrames
from training.fit import fit
from training.module import Clips
from training.settings import recipe_for
from training.splits import split

STRONG = Augmentation(crop=0.4, colour=0.5, hue=0.2)
augmentations = st.builds(
    Augmentation,
    crop=st.floats(0.05, 1.0),
    aspect=st.floats(1.0, 2.0),
    colour=st.floats(0.0, 0.9),
    hue=st.floats(0.0, 0.5),
)


def noise(frames: int, height: int = 24, width: int = 32) -> torch.Tensor:
    """Return a clip of equal frames: uint8 (T, H, W, 3)."""
    one = torch.randint(0, 256, (1, height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return one.expand(frames, -1, -1, -1).clone()


@settings(deadline=None, max_examples=60)
@given(augmentations, st.integers(0, 2**32), st.integers(1, 5))
def test_a_clip_of_equal_frames_stays_one_and_the_seed_decides(how: Augmentation, seed: int, frames: int) -> None:
    clip = noise(frames)
    torch.manual_seed(seed)
    changed = how(clip)
    assert (changed.shape, changed.dtype, changed.is_contiguous()) == (clip.shape, torch.uint8, True)
    assert torch.equal(changed, changed[:1].expand_as(changed))
    assert torch.equal(clip, noise(frames)), "its input was written to"
    torch.manual_seed(seed)
    assert torch.equal(changed, how(clip))
    assert how.changes_pixels or torch.equal(changed, clip)


def test_clips_are_changed_in_different_ways() -> None:
    torch.manual_seed(0)
    for how in (Augmentation(crop=0.5), Augmentation(colour=0.3), Augmentation(hue=0.3)):
        assert len({how(noise(2)).numpy().tobytes() for _ in range(8)}) == 8


@pytest.mark.parametrize(("height", "width"), [(100, 100), (60, 120)])
def test_a_crop_has_the_share_and_shape_that_is_allowed(height: int, width: int) -> None:
    # Red tells the column, green the row, so the corners tell what was cropped.
    rows, columns = torch.meshgrid(torch.linspace(0, 250, height), torch.linspace(0, 250, width), indexing="ij")
    clip = torch.stack([columns, rows, rows * 0], -1).round().to(torch.uint8)[None]
    torch.manual_seed(0)
    how, shares, shapes = Augmentation(crop=0.3, aspect=1.5), [], []
    for _ in range(200):
        changed = how(clip)[0].float()
        wide, high = ((changed[-1, -1] - changed[0, 0])[:2] / 250).tolist()
        shares.append(wide * high)
        shapes.append(wide / high)
    assert 0.27 < min(shares) < 0.45
    assert 0.8 < max(shares) <= 1.02
    assert 1 / 1.6 < min(shapes) < 0.8
    assert 1.25 < max(shapes) < 1.6


def test_colour_is_multiplied_by_up_to_its_share() -> None:
    grey = torch.full((2, 8, 8, 3), 100, dtype=torch.uint8)  # which contrast, saturation and hue leave as it is
    torch.manual_seed(0)
    seen = [int(Augmentation(colour=0.2, hue=0.1)(grey).unique()) for _ in range(100)]
    assert 78 <= min(seen) < 85  # each step rounds
    assert 115 < max(seen) <= 122


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": 0.0}, "augmentation.crop is 0.0; allowed are 0.01 to 1"),
        ({"crop": 1.5}, "augmentation.crop is 1.5"),
        ({"aspect": 0.5}, "augmentation.aspect is 0.5; allowed are 1 to 4"),
        ({"colour": 1.0}, "augmentation.colour is 1.0; allowed are 0 to 0.95"),
        ({"hue": 0.6}, "augmentation.hue is 0.6; allowed are 0 to 0.5"),
    ],
)
def test_values_that_are_not_allowed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(fields, Augmentation)


def test_only_training_clips_are_changed(videos: Path) -> None:
    grid = Grid(ClipSampling(frames=3), Size(width=48, height=32))
    source = DecodedFrames(sorted(videos.rglob("*.mp4")), grid)
    plain = source.clip(0, grid.middle(), mirror=False)
    shown, trained = (
        Clips(source, [0], [0], grid, augment=on, flip=False, pixels=STRONG)[0][0] for on in (False, True)
    )
    assert torch.equal(shown, plain)
    assert not torch.equal(trained, plain)


def test_all_frames_of_a_clip_are_mirrored_or_none() -> None:
    grid = Grid(ClipSampling(frames=5), Size(width=8, height=8))
    ramp = np.arange(8, dtype=np.uint8)[:, None]
    source = StoredFrames(np.broadcast_to(ramp, (1, grid.places, 8, 8, 3)))
    clips = Clips(source, [0] * 200, [0] * 200, grid, augment=True, flip=True)
    firsts = [set(clips[item][0][:, :, 0].flatten().tolist()) for item in range(200)]
    assert all(first in ({0}, {7}) for first in firsts)
    assert 70 < firsts.count({7}) < 130
    assert not any(
        torch.any(clip[:, :, 0]) for clip, _ in Clips(source, [0] * 99, [0] * 99, grid, augment=True, flip=False)
    )


@pytest.mark.parametrize(
    ("jitter", "steps", "firsts"), [("frame", range(1, 6), {0, 1, 2}), ("clip", {3}, {0, 1, 2}), ("none", {3}, {1})]
)
def test_clips_are_shifted_in_time(jitter: str, steps: set[int], firsts: set[int]) -> None:
    """Every picture holds the number of its place: a part has three, and labelling takes the second."""
    grid = Grid(ClipSampling(frames=5), Size(width=8, height=8))
    numbers = np.arange(grid.places, dtype=np.uint8)[:, None, None, None]
    source = StoredFrames(np.broadcast_to(numbers, (1, grid.places, 8, 8, 3)))
    clips = Clips(source, [0] * 300, [0] * 300, grid, augment=True, flip=False, jitter=jitter)
    places = np.array([clips[item][0][:, 0, 0, 0].tolist() for item in range(300)])
    assert set(places[:, 0].tolist()) == firsts
    assert set(np.diff(places).flatten().tolist()) == set(steps)
    assert all(set((column // 3).tolist()) == {part} for part, column in enumerate(places.T))


# Python 3.12 warns of what torch's loaders have always done; the warning would end their worker.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFit:
    @pytest.fixture
    def samples(self, videos: Path) -> list[Sample]:
        return split(scan_folders(videos), (0, 0.5), seed=0)[0]

    def test_the_seed_decides_the_weights_and_the_bundle_tells(self, samples: list[Sample], tmp_path: Path) -> None:
        recipe = small()
        recipe = replace(recipe, optimisation=replace(recipe.optimisation, epochs=2))
        for name, how in (("none", Augmentation()), ("a", STRONG), ("b", STRONG)):
            fit(samples, replace(recipe, augmentation=how), tmp_path / name, report(), cache=tmp_path / "cache")
        assert same(tmp_path / "a", tmp_path / "b")
        assert not same(tmp_path / "a", tmp_path / "none")
        told = load(tmp_path / "a/bundle").spec.training["augmentation"]
        assert msgspec.convert(told, Augmentation) == STRONG

    def test_features_of_a_frozen_encoder_cannot_be_augmented(self) -> None:
        frozen = {"sampling": {}, "size": {}, "head": {}, "optimisation": {}, "freeze_encoder": True}
        frozen |= {"encoder_weights": "w.pth"}
        with pytest.raises(
            UsageError, match="stored once, so crops and colours cannot change: leave them out, or train"
        ):
            recipe_for("resnet18_lstm", augmentation={"crop": 0.5}, **frozen)
        recipe_for("resnet18_lstm", **frozen)
        recipe_for("i3d_r50_lstm", augmentation={"crop": 0.5}, **frozen)  # whose frames are seen in every epoch

    def test_a_recipe_file_says_it_and_options_go_on_top(self, tmp_path: Path) -> None:
        (tmp_path / "r.toml").write_text('architecture = "lrcn"\n[augmentation]\ncrop = 0.5\ncolour = 0.2\n')
        changes = {"augmentation": {"crop": None, "colour": 0.4, "hue": None}}
        recipe = recipes.to_recipe(recipes.read(str(tmp_path / "r.toml"), changes))
        assert recipe.augmentation == Augmentation(crop=0.5, colour=0.4)
        (tmp_path / "r.toml").write_text('architecture = "lrcn"\n[augmentation]\ncrop = 2\n')
        with pytest.raises(UsageError, match=r"augmentation\.crop is 2\.0; allowed are 0.01 to 1"):
            recipes.to_recipe(recipes.read(str(tmp_path / "r.toml")))
