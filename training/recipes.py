"""Recipes: what is trained on which data and how, as TOML files that flags go on top of.

[data]           layout, official, split_by, classes, per_class, val, test: as for ``prepare``
[sampling], [size], [head], [optimisation], [augmentation]: fields of the classes of these names
[smoke]          what is changed to try the recipe on generated data: the same tables
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import torchvision

from harec_deploy.errors import UsageError
from harec_deploy.models import hub
from training.datasets.layouts import DataSettings
from training.settings import Recipe, recipe_for
from training.synthetic import ACTIONS, synthesize

FOLDER = Path(__file__).parent / "recipes"
SMOKE_ACTORS, SMOKE_CLIPS = 5, 2
SMOKE_TESTED = 2  # actors that the official lists of the generated data hold out
SMOKE_MARK = "made-by-smoke.txt"  # in a folder that --smoke made, and may therefore empty
Progress = Callable[[int, int], None]


class RecipeFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe as it is written down. about: where it comes from and what it is for, in a sentence."""

    about: str = ""
    architecture: str = "resnet50_lstm"
    encoder_weights: str | None = None
    finetune: bool = False
    finetune_stages: int = 0
    flip: bool = True
    jitter: str = "clip"
    folds: int = 0
    seed: int = 0
    data: DataSettings = DataSettings()
    sampling: dict[str, Any] = {}
    size: dict[str, Any] = {}
    head: dict[str, Any] = {}
    optimisation: dict[str, Any] = {}
    augmentation: dict[str, Any] = {}
    smoke: dict[str, Any] = {}


def names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str, changes: dict[str, Any] | None = None, *, smoke: bool = False) -> RecipeFile:
    """Return a recipe by name or path of a file, "" for an empty one, with ``changes`` that are not None on top.

    smoke: with its table [smoke] on top too.

    Raises:
        UsageError: no such recipe, or one that is damaged or has fields that are not known.
    """
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        written = msgspec.toml.decode(path.read_bytes()) if name else {}
    except OSError as error:
        raise UsageError(
            f"recipe {name}: cannot be read ({error.strerror}); allowed are {', '.join(names())}, or a TOML file"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: {error}") from None
    try:
        msgspec.convert(written, RecipeFile)  # a value where a table belongs can't be merged
        if smoke:
            written = _merged(written, written.get("smoke", {}))
        return msgspec.convert(_merged(written, changes or {}), RecipeFile)
    except msgspec.ValidationError as error:
        raise UsageError(f"recipe {path}: {error}" if name else str(error)) from None


def to_recipe(written: RecipeFile) -> Recipe:
    """Return what ``fit`` takes. Raises UsageError for a value that is not allowed."""
    if written.finetune and written.finetune_stages:
        raise UsageError("--finetune trains all stages: leave it or --finetune-stages out")
    pretrained = written.encoder_weights is not None
    return recipe_for(
        written.architecture,
        sampling=written.sampling,
        size=written.size,
        head=written.head,
        optimisation=written.optimisation,
        augmentation=written.augmentation,
        encoder_weights=written.encoder_weights,
        freeze_encoder=pretrained and not written.finetune and not written.finetune_stages,
        finetune_stages=written.finetune_stages,
        flip=written.flip,
        jitter=written.jitter,
        seed=written.seed,
    )


def with_random_weights(written: RecipeFile, folder: Path) -> RecipeFile:
    """Return the recipe with random weights in place of a pre-trained encoder's, from a file as those would come."""
    if written.encoder_weights is None:
        return written
    backbone = hub.network(written.architecture)
    torch.manual_seed(written.seed)
    path = folder / f"{backbone}.pth"
    torch.save(torchvision.models.get_model(backbone, weights=None).state_dict(), path)
    return msgspec.structs.replace(written, encoder_weights=str(path))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``changes`` that are not None; tables are merged, not replaced."""
    merged = dict(base)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(name, {}), dict):
            merged[name] = _merged(merged.get(name, {}), value)
        elif value is not None:
            merged[name] = value
    return merged


def smoke_data(layout: str, folder: Path, progress: Progress) -> Path:
    """Render videos of stick figures in the layout of a public data set, and return its folder.

    Raises:
        UsageError: a layout that they cannot be put in, or a folder that was not made here.
    """
    if layout not in _PLACES:
        allowed = ", ".join(_PLACES)
        raise UsageError(f"--smoke cannot generate layout {layout}; allowed are {allowed}: name one in [smoke.data]")
    _claim(folder)
    suffix = ".mpg" if layout == "ucf11" else ".avi"
    made = synthesize(
        folder / "rendered", actors=SMOKE_ACTORS, clips_per_action=SMOKE_CLIPS, suffix=suffix, progress=progress
    )
    root = folder / layout
    if root.exists():
        shutil.rmtree(root)
    for path in made:
        place = root / _PLACES[layout](path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(path)
    if layout == "ucf101":
        _write_ucf_lists(root / "ucfTrainTestlist", made)
    return root


def _claim(folder: Path) -> None:
    """Make and mark the folder of the generated videos. Raises UsageError for one that is there and has no mark."""
    mark = folder / SMOKE_MARK
    if folder.exists() and not mark.exists():
        raise UsageError(f"--smoke would write to {folder}, which it did not make: move it, or name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("Videos for python -m training run --smoke, which may write over all that is here.\n")


def _ucf11_place(path: Path) -> Path:
    """v_jump_g01_c02.mpg -> jump/v_jump_01/v_jump_01_02.mpg."""
    stem, group, clip = path.stem.rsplit("_", 2)
    return Path(path.parent.name, f"{stem}_{group[1:]}", f"{stem}_{group[1:]}_{clip[1:]}{path.suffix}")


_PLACES: dict[str, Callable[[Path], Path]] = {
    "ucf101": lambda path: Path("UCF-101", path.parent.name, path.name),
    "ucf50": lambda path: Path(path.parent.name, path.name),
    "ucf11": _ucf11_place,
}


def _write_ucf_lists(folder: Path, paths: Sequence[Path]) -> None:
    """Write classInd.txt and the lists of split 1, which holds out the first actors."""
    folder.mkdir()
    numbers = {action: number for number, action in enumerate(sorted(ACTIONS), 1)}
    (folder / "classInd.txt").write_text("".join(f"{number} {action}\n" for action, number in numbers.items()))
    tested = {f"_g{actor:02d}_" for actor in range(SMOKE_TESTED)}
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for path in paths:
        side = "test" if any(group in path.name for group in tested) else "train"
        line = f"{path.parent.name}/{path.name}"
        lists[side].append(line if side == "test" else f"{line} {numbers[path.parent.name]}")
    for side, lines in lists.items():
        (folder / f"{side}list01.txt").write_text("".join(f"{line}\n" for line in lines))
