"""Recipes: each runs from videos in its data set's layout to an evaluation; flags go on top of files."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.errors import UsageError
from training import recipes
from training.__main__ import app
from training.datasets import read_manifest
from training.synthetic import synthesize


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The videos that --smoke renders, once for all recipes."""
    folders = {suffix: tmp_path_factory.mktemp("rendered") for suffix in (".avi", ".mpg")}
    for suffix, folder in folders.items():
        synthesize(folder, actors=recipes.SMOKE_ACTORS, clips_per_action=recipes.SMOKE_CLIPS, suffix=suffix)
    return folders


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_runs_from_videos_to_an_evaluation(name: str, rendered: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipes.read(name, smoke=True)
    suffix = ".mpg" if recipe.data.layout == "ucf11" else ".avi"
    shutil.copytree(rendered[suffix], tmp_path / "run-data/rendered")
    (tmp_path / "run-data" / recipes.SMOKE_MARK).touch()
    ended = CliRunner().invoke(app, ["run", name, "--smoke", "-o", str(tmp_path / "run")], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    manifest = read_manifest(tmp_path / "run.csv")
    assert len(manifest.classes) == int(recipe.data.classes)
    assert {sample.split for sample in manifest.samples} == {"train", "val", "test"}
    assert {sample.codec for sample in manifest.samples} == {"mpeg1video" if suffix == ".mpg" else "mpeg4"}
    sides = {(sample.group, sample.split) for sample in manifest.samples}
    assert len(sides) == len({group for group, _ in sides}), "a group is on two sides"
    spec = load(tmp_path / "run/bundle").spec
    assert spec.architecture == recipe.architecture
    assert spec.training["optimisation"]["epochs"] == recipe.optimisation["epochs"]
    assert (spec.training["encoder_weights"] == "none") == (recipe.encoder_weights is None)
    assert spec.training["recipe"] == f"{name} --smoke"
    data = spec.training["data"]
    assert (data["layout"], data["classes"], data["seed"]) == (recipe.data.layout, recipe.data.classes, recipe.seed)
    assert "val is taken from train" in data["split"] or data["split"].startswith("split by group, no group on two")
    facts = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    assert facts["videos"] == spec.training["videos"]["test"] > 0
    assert (tmp_path / "run/evaluation/evaluation.html").stat().st_size > 10_000


def test_every_recipe_says_what_it_is_and_is_whole_without_smoke() -> None:
    assert len(recipes.names()) == 7
    ended = CliRunner().invoke(app, ["run"])
    for name in recipes.names():
        written = recipes.read(name)
        assert f"{name}: {written.about}" in ended.stdout
        assert recipes.to_recipe(written).architecture == name_of(name)


def name_of(recipe: str) -> str:
    known = {"resnet50": "resnet50_lstm", "full": "mobilenet_v2_lstm", "lrcn": "lrcn", "convlstm": "convlstm"}
    known |= {"i3d": "i3d_r50_lstm", "cnn3d": "cnn3d_lstm"}
    return next(architecture for part, architecture in known.items() if part in recipe)


class TestFiles:
    def write(self, folder: Path, text: str) -> str:
        (folder / "mine.toml").write_text(text)
        return str(folder / "mine.toml")

    def test_flags_go_on_top(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, 'architecture = "lrcn"\nseed = 3\n[optimisation]\nepochs = 5\nbatch = 4\n')
        changes = {"seed": None, "optimisation": {"epochs": 7, "batch": None}, "flip": False}
        recipe = recipes.to_recipe(recipes.read(path, changes))
        assert (recipe.architecture, recipe.seed, recipe.flip) == ("lrcn", 3, False)
        assert (recipe.optimisation.epochs, recipe.optimisation.batch) == (7, 4)

    def test_smoke_is_merged_table_by_table(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "[optimisation]\nepochs = 5\nbatch = 4\n[smoke.optimisation]\nepochs = 1\n")
        assert recipes.read(path, smoke=True).optimisation == {"epochs": 1, "batch": 4}
        assert recipes.read(path).optimisation == {"epochs": 5, "batch": 4}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("architecture = lrcn", "mine.toml: .*"),
            ("epochs = 5", "mine.toml: Object contains unknown field `epochs`"),
            ("[optimisation]\nepoch = 5", r"unknown field `epoch` in \[optimisation\]; allowed are epochs, "),
            ("[head]\nfoo = 1", r"unknown field `foo` in \[head\]; allowed are hidden, "),
            ("head = 256", r"mine.toml: Expected `object`, got `int` - at `\$.head`"),
            ("smoke = 256", r"mine.toml: Expected `object`, got `int` - at `\$.smoke`"),
            ("[head]\nhidden = 8\n[smoke.head.hidden]\na = 1", r"Expected `int`, got `object` - at `\$.hidden`"),
            ("[optimisation]\nepochs = 0", "optimisation.epochs is 0; allowed are 1"),
            ('[data]\nsplit = "x"', "unknown field `split`"),
            ("finetune = true\nfinetune_stages = 1", "--finetune trains all stages"),
        ],
    )
    def test_what_is_wrong_is_told(self, tmp_path: Path, text: str, message: str) -> None:
        path = self.write(tmp_path, text)
        with pytest.raises(UsageError, match=message):
            recipes.to_recipe(recipes.read(path, {"head": {"hidden": None}}, smoke=True))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("seed = 1", "--smoke cannot generate layout auto; allowed are ucf101, ucf50, ucf11: name one in"),
            ('data = { layout = "hmdb51" }', "--smoke cannot generate layout hmdb51"),
            ('architecture = "lrcn"\nencoder_weights = "imagenet"', "lrcn has no pre-trained encoder"),
            ('data = { layout = "ucf50" }\n[optimisation]\nepochs = 0', "optimisation.epochs is 0"),
        ],
    )
    def test_smoke_tells_what_it_cannot_try_before_it_renders(self, tmp_path: Path, text: str, message: str) -> None:
        path = self.write(tmp_path, text)
        with pytest.raises(UsageError, match=message):
            CliRunner().invoke(app, ["run", path, "--smoke", "-o", str(tmp_path / "r")], catch_exceptions=False)
        assert not (tmp_path / "r-data").exists()

    @pytest.mark.parametrize("option", ["--data", "--encoder-weights"])
    def test_smoke_takes_no_data_or_weights(self, tmp_path: Path, option: str) -> None:
        command = ["run", "ucf50-lrcn", "--smoke", option, str(tmp_path), "-o", str(tmp_path / "r")]
        with pytest.raises(UsageError, match="--smoke generates its videos and weights: leave --data and"):
            CliRunner().invoke(app, command, catch_exceptions=False)

    def test_smoke_keeps_out_of_a_folder_that_it_did_not_make(self, tmp_path: Path) -> None:
        (tmp_path / "r-data/ucf50/mine").mkdir(parents=True)
        with pytest.raises(UsageError, match=r"--smoke would write to .*r-data, which it did not make: move it"):
            CliRunner().invoke(app, ["run", "ucf50-lrcn", "--smoke", "-o", str(tmp_path / "r")], catch_exceptions=False)
        assert [path.name for path in tmp_path.rglob("*")] == ["r-data", "ucf50", "mine"]

    def test_no_such_recipe(self) -> None:
        with pytest.raises(UsageError, match=r"recipe ucf1: cannot be read .*; allowed are ucf101-25-resnet50"):
            recipes.read("ucf1")

    def test_data_must_be_named(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match=r"--data: name the folder of the data set .ucf50., or try it with --smoke"
        ):
            CliRunner().invoke(app, ["run", "ucf50-lrcn", "-o", str(tmp_path / "r")], catch_exceptions=False)
