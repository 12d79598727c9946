"""Splits that keep what belongs together on one side.

Clips of one scene look alike. With some in training and some in test, a model is praised for knowing the scene, so
groups are split, not clips, wherever groups are known.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from harec_deploy.errors import UsageError
from training.datasets import SPLITS, Sample

LEAKS = "clips of one scene may be on both sides, and the test accuracy may be too high"


def split(
    samples: Sequence[Sample], shares: tuple[float, float], seed: int, by: str = "auto"
) -> tuple[list[Sample], str]:
    """Put every sample into train, val or test and say in one line how.

    shares: the shares of val and test.
    by: "group"; "random", within each class; or "auto": by group where there are groups. Samples that are on a side
        already, by an official list, stay there; a missing val is taken from train.

    Raises:
        UsageError: too few groups, shares that leave nothing for training, or ``by`` where nothing is left to split.
    """
    if by not in ("auto", "group", "random"):
        raise UsageError(f"split by {by!r}: allowed are auto, group and random")
    val, test = shares
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UsageError(f"shares of {val:g} for val and {test:g} for test: allowed are 0 to 1, together below 1")
    if any(sample.split for sample in samples):
        return _official(samples, shares, seed, by)
    groups = sorted({sample.group for sample in samples})
    if by == "group" and groups == [""]:
        raise UsageError("split by group: the videos carry no group; give --group-regex, or split by random")
    if by == "random" and groups != [""]:
        told = f"WARNING: the split is random although {len(groups)} groups are known: {LEAKS}"
        return _random_by_class(samples, shares, seed), told
    if groups != [""]:
        if not _crossed(samples):
            return _by_group(samples, shares, seed)
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
        f"WARNING: the file names carry no group, so the split is random: {LEAKS}. "
        "Give --group-regex if the names tell scenes apart",
    )


def subset(samples: Sequence[Sample], classes: str, per_class: int, seed: int) -> list[Sample]:
    """Return the samples of some classes, and at most ``per_class`` of each, drawn at random; 0 is all.

    classes: names, "Biking,Diving"; or how many are drawn, "25"; or "" for all.

    Raises:
        UsageError: classes that are not there, or fewer than two.
    """
    there = sorted({sample.label for sample in samples})
    chosen = [name.strip() for name in classes.split(",") if name.strip()]
    if len(chosen) == 1 and chosen[0].isdecimal():
        if not 2 <= int(chosen[0]) <= len(there):
            raise UsageError(f"--classes {classes}: allowed are 2 to {len(there)}, or names")
        chosen = random.Random(seed).sample(there, int(chosen[0]))
    if unknown := sorted(set(chosen) - set(there)):
        raise UsageError(f"--classes: there is no class {unknown[0]}; there are {', '.join(there[:8])}")
    if len(chosen) == 1 or per_class < 0:
        raise UsageError("--classes needs two names or more, --per-class 0 or more")
    keep = set(chosen or there)
    done: list[Sample] = []
    for label in sorted(keep):
        members = [sample for sample in samples if sample.label == label]
        if per_class and len(members) > per_class:
            drawn = random.Random(f"{seed} {label}").sample(range(len(members)), per_class)
            members = [members[place] for place in sorted(drawn)]
        done += members
    return done


def _official(samples: Sequence[Sample], shares: tuple[float, float], seed: int, by: str) -> tuple[list[Sample], str]:
    """Keep the sides of an official list, and take val from train where the list has none."""
    counts = Counter(sample.split for sample in samples)
    if counts["val"] or not shares[0]:
        told = ", ".join(f"{name} {counts[name]}" for name in SPLITS)
        if by != "auto":
            raise UsageError(
                f"--split-by {by}: the official lists leave nothing to split ({told} videos); leave it out"
            )
        return list(samples), f"official split: {told} videos"
    train = [replace(sample, split="") for sample in samples if sample.split == "train"]
    divided, told = split(train, (shares[0], 0.0), seed, by)
    places = {sample.path: sample.split for sample in divided}
    done = [replace(sample, split=places.get(sample.path, sample.split)) for sample in samples]
    return done, f"official split, test {counts['test']} videos; val is taken from train: {told}"


def _crossed(samples: Sequence[Sample]) -> bool:
    """Whether every group has videos of every class, as people who act everything do."""
    classes = len({sample.label for sample in samples})
    return len({(sample.label, sample.group) for sample in samples}) == classes * len({s.group for s in samples})


def _by_group(samples: Sequence[Sample], shares: tuple[float, float], seed: int) -> tuple[list[Sample], str]:
    """Give each group, the largest first, to the side that is furthest from its share of the group's classes."""
    members: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[sample.group].append(sample)
    groups = sorted(members)
    random.Random(seed).shuffle(groups)
    groups.sort(key=lambda group: -len(members[group]))
    totals = Counter(sample.label for sample in samples)
    val, test = shares
    wanted = {side: share for side, share in (("test", test), ("val", val), ("train", 1 - val - test)) if share}
    have: Counter[tuple[str, str]] = Counter()
    places = {}
    for group in groups:
        labels = Counter(sample.label for sample in members[group])

        def missing(side: str, labels: Counter[str] = labels) -> float:
            return sum(n * (1 - have[side, label] / (wanted[side] * totals[label])) for label, n in labels.items())

        places[group] = max(wanted, key=missing)
        have.update({(places[group], label): n for label, n in labels.items()})
    if len(set(places.values())) < len(wanted):
        raise UsageError(f"{len(groups)} groups are too few for {' and '.join(wanted)}")
    counts = Counter(places.values())
    told = ", ".join(f"{name} {counts[name]}" for name in SPLITS if counts[name])
    return (
        [replace(sample, split=places[sample.group]) for sample in samples],
        f"split by group, no group on two sides, classes in proportion: {told} of {len(groups)} groups",
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
