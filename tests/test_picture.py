"""A decoded picture is turned, coloured and cut as a player shows it."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from harec_deploy.decode import Frames, Size
from harec_deploy.decode.pyav import PyAVDecoder
from tests.media import Clip, decode_all, make_patches, make_video, picture, rotate, write_frames

WIDE = Size(width=64, height=48)
TALL = Size(width=48, height=64)


def first(path: Path, size: Size) -> Frames:
    return PyAVDecoder().frames(path, [0.0], size)


# Rotation


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_equals_turned_pixels(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    stored, shown = (TALL, WIDE) if degrees % 180 else (WIDE, WIDE)
    path = make_video(tmp_path / "clip.mp4", frames=30)
    times = [0.0, 0.5, 1.1]
    upright = decode_all(path).pixels(times, stored)
    expected = np.rot90(upright[:, :, ::-1] if mirrored else upright, -degrees // 90, axes=(1, 2))
    got = PyAVDecoder().frames(rotate(path, degrees, mirrored=mirrored), times, shown)
    np.testing.assert_array_equal(got.pixels, expected)
    assert got.pixels.flags.c_contiguous
    assert (got.info.width, got.info.height) == ((120, 160) if degrees % 180 else (160, 120))
    if not mirrored:
        assert got.info.rotation_degrees == degrees


def test_rotation_is_what_ffmpeg_says(tmp_path: Path) -> None:
    for degrees, counterclockwise in ((90, -90), (270, 90), (180, -180)):
        path = rotate(make_video(tmp_path / "clip.mp4", frames=2), degrees)
        assert decode_all(path).frames[0].rotation == counterclockwise


def test_turned_crop(tmp_path: Path) -> None:
    # Stored 160x120, shown 120x160: a square crop takes the middle 120 rows of what is shown.
    path = rotate(make_video(tmp_path / "clip.mp4", frames=2), 90)
    whole = first(path, Size(width=60, height=80)).pixels[0]
    crop = first(path, Size(width=60, height=60, mode="crop")).pixels[0]
    np.testing.assert_array_equal(crop, whole[10:70])


# Geometry


def bars(path: Path, pixel_aspect: Fraction, *, turned: bool = False) -> Path:
    """Write 128x96 pixels: the middle half green, the quarters beside it red."""
    frame = np.zeros((96, 128, 3), dtype=np.uint8)
    frame[..., 0] = 220
    frame[:, 32:96] = (0, 220, 0)
    clip = Clip(width=96 if turned else 128, height=128 if turned else 96, frames=2, pixel_aspect=pixel_aspect)
    shown = frame.swapaxes(0, 1) if turned else frame
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24") for _ in range(2))
    return write_frames(path, clip, frames)


def is_green(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return pixels[..., 1] > pixels[..., 0].astype(int) + 60


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_crop_takes_the_middle_of_the_picture_as_shown(tmp_path: Path, suffix: str) -> None:
    # 128x96 pixels of 3:2 are shown as 2:1, of which a square is the middle half: nothing but green.
    size = Size(width=64, height=64, mode="crop")
    assert is_green(first(bars(tmp_path / f"clip{suffix}", Fraction(3, 2)), size).pixels[0][:, 2:-2]).all()
    # Square pixels are shown as 4:3, of which a square is the middle three quarters: green with red beside it.
    square = is_green(first(bars(tmp_path / f"square{suffix}", Fraction(1)), size).pixels[0])
    assert square[:, 14:-14].all()
    assert not square[:, :7].any()
    assert not square[:, -7:].any()


def test_crop_of_a_tall_picture_takes_its_middle(tmp_path: Path) -> None:
    # 96x128 pixels of 2:3 are shown as 1:2.
    path = bars(tmp_path / "clip.mp4", Fraction(2, 3), turned=True)
    assert is_green(first(path, Size(width=64, height=64, mode="crop")).pixels[0][2:-2]).all()


def test_stretch_keeps_all_of_the_picture(tmp_path: Path) -> None:
    green = is_green(first(bars(tmp_path / "clip.mp4", Fraction(3, 2)), Size(width=64, height=64)).pixels[0])
    assert green[:, 18:46].all()
    assert not green[:, :14].any()
    assert not green[:, 50:].any()


@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("shape", [(64, 64), (112, 8), (8, 112), (33, 47)])
@pytest.mark.parametrize("pixel_aspect", [Fraction(1), Fraction(16, 11), Fraction(1, 3)])
def test_size_is_always_the_one_asked_for(
    tmp_path: Path, mode: str, shape: tuple[int, int], pixel_aspect: Fraction
) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=2, pixel_aspect=pixel_aspect)
    got = first(path, Size(width=shape[0], height=shape[1], mode=mode))  # type: ignore[arg-type]
    assert got.pixels.shape == (1, shape[1], shape[0], 3)


@pytest.mark.parametrize(("width", "height"), [(63, 47), (161, 121), (17, 200)])
def test_odd_sizes(tmp_path: Path, width: int, height: int) -> None:
    path = make_video(tmp_path / "clip.avi", codec="mjpeg", b_frames=0, frames=2, width=width, height=height)
    got = first(path, Size(width=max(width, 8), height=height))
    # Nothing is scaled here, so a wrong stride would shift the rows against the picture that went in.
    sent = picture(Clip(width=width, height=height), 0).astype(float).mean(axis=2)
    assert np.corrcoef(got.pixels[0].mean(axis=2).ravel(), sent.ravel())[0, 1] > 0.95


# Colour

COLOURS = [(180, 90, 200), (60, 150, 100), (128, 128, 128), (200, 120, 60), (81, 91, 235)]
MATRICES = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}
UNTAGGED, BT709, SMPTE170M = 2, 1, 6
LIMITED, FULL = 1, 2


def rgb(colour: tuple[int, int, int], matrix: str, *, full: bool) -> NDArray[np.float64]:
    """Return the RGB of a (Y, Cb, Cr) by the formulas of BT.601 and BT.709."""
    red, blue = MATRICES[matrix]
    luma, cb, cr = (colour[0], colour[1] - 128, colour[2] - 128)
    y, b, r = (luma / 255, cb / 255, cr / 255) if full else ((luma - 16) / 219, cb / 224, cr / 224)
    out_red, out_blue = y + 2 * (1 - red) * r, y + 2 * (1 - blue) * b
    out_green = (y - red * out_red - blue * out_blue) / (1 - red - blue)
    return np.clip(np.array([out_red, out_green, out_blue]) * 255, 0, 255)


@pytest.mark.parametrize(
    ("colorspace", "color_range", "matrix", "full"),
    [
        (BT709, LIMITED, "709", False),
        (SMPTE170M, LIMITED, "601", False),
        (UNTAGGED, LIMITED, "601", False),
        (BT709, FULL, "709", True),
        (SMPTE170M, FULL, "601", True),
    ],
)
@pytest.mark.parametrize("bar", [32, 16])  # pixels of a bar after scaling: swscale has two ways to RGB
def test_colours(tmp_path: Path, bar: int, colorspace: int, color_range: int, matrix: str, full: bool) -> None:
    path = make_patches(tmp_path / "clip.mp4", COLOURS, colorspace=colorspace, color_range=color_range)
    frame = decode_all(path).frames[0]
    assert (frame.colorspace, frame.color_range == FULL) == (colorspace, full)  # the tags were written
    got = first(path, Size(width=bar * len(COLOURS), height=bar * 2)).pixels[0]
    for place, colour in enumerate(COLOURS):
        patch = got[bar // 2 : -bar // 2, bar * place + bar // 4 : bar * (place + 1) - bar // 4].reshape(-1, 3)
        np.testing.assert_allclose(patch.mean(axis=0), rgb(colour, matrix, full=full), atol=3)
        assert patch.std(axis=0).max() < 1


def test_matrices_differ_by_more_than_the_tolerance() -> None:
    for full in (False, True):
        apart = [
            np.abs(rgb(c, "601", full=full) - rgb(c, "709", full=full)).max() for c in COLOURS if c[1:] != (128, 128)
        ]
        assert min(apart) > 4
