"""What an architecture costs, counted by hand and listed by the command."""

import json

import pytest
from typer.testing import CliRunner

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models import ARCHITECTURES, CLIPWISE, build
from harec_deploy.spec import HeadSpec
from training.__main__ import app
from training.costs import all_costs, cost


def test_small_models_count_as_by_hand() -> None:
    """Two for each weight, wherever on a map it is used; batch normalisation and gates are not counted."""
    small = cost(
        "cnn3d_lstm", HeadSpec(hidden=6, dense=5, layer_norm=False), 3, frames=4, size=Size(width=32, height=16)
    )
    first, second = 4 * 16 * 32 * 27 * 3 * 16, 4 * 4 * 8 * 27 * 16 * 32
    third = 2 * 2 * 4 * 27 * 32 * 64
    lstm, dense = 2 * 4 * 6 * (2 * 64 + 6), 6 * 5 + 5 * 3
    assert small.flops == 2 * (first + second + third + lstm + dense)
    convolutions = 27 * (3 * 16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64)
    assert small.parameters == convolutions + 4 * 6 * (2 * 64 + 6 + 2) + (6 * 5 + 5) + (5 * 3 + 3)


def test_figures_are_the_published_ones() -> None:
    """torchvision: 4.09 and 0.30 billion multiply-adds a frame. PyTorchVideo: 37.53, normalisation counted too."""
    for backbone, published in (("resnet50", 4.089), ("mobilenet_v2", 0.301)):
        one = cost(f"{backbone}_lstm", HeadSpec(), 101, frames=16, size=Size(width=224, height=224))
        assert one.flops / 2e9 / 16 == pytest.approx(published, rel=0.01)
    i3d = cost("i3d_r50_lstm", HeadSpec(), 101, frames=8, size=Size(width=256, height=256))
    assert i3d.flops / 2e9 == pytest.approx(37.53, rel=0.02)


def test_parameters_are_those_of_a_real_model() -> None:
    known = ARCHITECTURES["convlstm"]
    (listed,) = (each for each in all_costs(7) if each.architecture == "convlstm")
    model = build("convlstm", known.head, 7, size=known.size)
    assert listed.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_clips_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="cnn3d_lstm takes at least 2 frames"):
        cost("cnn3d_lstm", HeadSpec(), 3, frames=1, size=Size(width=64, height=64))


def test_the_command_lists_every_architecture() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    for name, known in ARCHITECTURES.items():
        (row,) = (line for line in result.stdout.splitlines() if f" {name} " in line)
        kind = "clip-wise" if name in CLIPWISE else "frame-wise"
        assert kind in row
        assert f"{known.sampling.frames} x {known.size.width}x{known.size.height}" in row
    assert "count a multiply-add as two" in result.stderr


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(app, ["models", "--json", "--classes", "7"])
    facts = json.loads(result.stdout)
    assert (facts["classes"], facts["flops_of_multiply_add"]) == (7, 2)
    assert [each["architecture"] for each in facts["architectures"]] == list(ARCHITECTURES)
    small = next(each for each in facts["architectures"] if each["architecture"] == "lrcn")
    assert (small["frames"], small["width"], small["height"], small["kind"]) == (20, 64, 64, "frame-wise")
    assert small["pretrained"] is False
