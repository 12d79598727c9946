"""Splits that keep what belongs together on one side.

Clips of one scene look alike. With some in training and some in test, a model is praised for knowing the scene, so
groups are split, not clips, wherever groups are known.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harec_deploy.errors import UsageError
from training.datasets import Sample


def split(samples: Sequence[Sample], shares: tuple[float, float], seed: int) -> tuple[list[Sample], str]:
    """Put every sample into train, val or test and say in one line how.

    shares: the shares of val and test. Samples with groups are split by group; without, at random within each class.

    Raises:
        UsageError: too few groups, or shares that leave nothing for training.
    """
    val, test = shares
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"shares of {val:g} for val and {test:g} for test: allowed are 0 to 1, together below 1")
    groups = sorted({sample.group for sample in samples})
    if groups != [""]:
        names = _shares(len(groups), shares)
        random.Random(seed).shuffle(groups)
        places = dict(zip(groups, names, strict=True))
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        return (
            [replace(sample, split=places[sample.group]) for sample in samples],
            f"split by group, no group on two sides: {told} of {len(groups)} groups",
        )
    return (
        _random_by_class(samples, shares, seed),
        "WARNING: the file names carry no group, so the split is random: clips of one scene may be on both sides, and "
        "the test accuracy may be too high. Give --group-regex if the names tell scenes apart",
    )


def folds(samples: Sequence[Sample], count: int, seed: int) -> list[list[Sample]]:
    """Return ``count`` splits of the samples; each group is in the test side of exactly one.

    Raises:
        UsageError: fewer groups than folds.
    """
    groups = sorted({sample.group for sample in samples})
    if not 2 <= count <= len(groups):
        raise UsageError(f"--folds {count}: allowed are 2 to the number of groups, {len(groups)}")
    random.Random(seed).shuffle(groups)
    place = {group: index % count for index, group in enumerate(groups)}
    return [
        [replace(sample, split="test" if place[sample.group] == fold else "train") for sample in samples]
        for fold in range(count)
    ]


def _shares(count: int, shares: tuple[float, float]) -> list[str]:
    """Return a split's name for each of ``count`` items; a share above 0 gets at least one."""
    val, test = (max(1, round(share * count)) if share else 0 for share in shares)
    if val + test >= count:
        raise UsageError(f"{count} groups are too few for val and test beside training")
    return ["train"] * (count - val - test) + ["val"] * val + ["test"] * test


def _random_by_class(samples: Sequence[Sample], shares: tuple[float, float], seed: int) -> list[Sample]:
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    done = []
    for label in sorted(by_class):
        members = by_class[label]
        names = _shares(len(members), shares)
        random.Random(f"{seed} {label}").shuffle(names)
        done += [replace(sample, split=name) for sample, name in zip(members, names, strict=True)]
    return done
