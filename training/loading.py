"""Which clips a step takes, and chance that has no state.

Every random number is made from the run's seed and the place where it is needed: an epoch, a step, a clip of an epoch.
So a run that goes on from the middle of an epoch draws what it would have drawn, and neither the number of processes
that decode nor that of devices changes which clips are seen, in which order, or how they are augmented.
"""

from collections.abc import Iterator, Sized

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler


def derived_seed(seed: int, *places: int) -> int:
    """Return a seed below 2**64 for one place of a run: other places, or another seed, give unlike numbers."""
    return int(np.random.SeedSequence([seed, *places]).generate_state(1, np.uint64)[0])


class Order(Sampler[int]):
    """The places of a data set that one of ``world`` processes takes in an epoch.

    The processes take turns, so each batch that they share holds the same clips whatever their number.

    shuffle: in an order of each epoch's own, and so that all processes take equally many, for which some clips may come
        twice. Otherwise in the given order, each once.
    """

    def __init__(self, data: Sized, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.data = data
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.skipped = 0

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Choose the epoch, counted from 0, of which ``skip`` places were taken already. Lightning calls it too."""
        if epoch != self.epoch or skip:  # Lightning names once more the epoch that a run goes on in
            self.epoch, self.skipped = epoch, skip
        if hasattr(self.data, "epoch"):
            self.data.epoch = epoch

    def __len__(self) -> int:
        """Return the number of places in a whole epoch."""
        return len(self._places())

    def __iter__(self) -> Iterator[int]:
        return iter(self._places()[self.skipped :].tolist())

    def _places(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        places = np.arange(len(self.data))
        if self.shuffle:
            np.random.default_rng([self.seed, self.epoch]).shuffle(places)
            places = np.resize(places, -(-len(places) // self.world) * self.world)
        return places[self.rank :: self.world]


def loader(data: Dataset[object], order: Order, *, batch: int, workers: int) -> DataLoader[object]:
    """Return the batches of all processes' ``batch`` clips that fall to this one."""
    return DataLoader(data, batch_size=batch // order.world, sampler=order, num_workers=workers)
