"""A picture of what augmentation makes of clips, to choose how far it goes."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from harec_deploy.errors import VideoError
from harec_deploy.sampling import ClipSampling
from training.augment import Augmentation
from training.datasets import Manifest
from training.features import DecodedFrames, Grid
from training.module import Clips
from training.plots import THUMBNAIL, WRONG, save

VIDEOS, TIMES, FRAMES = 4, 3, 6


def augmented_sheet(manifest: Manifest, augmentation: Augmentation, path: Path) -> None:
    """Draw clips as labelling takes them, the first of each class, and below each what training makes of it."""
    classes = {sample.label: sample for sample in reversed(manifest.samples)}
    shown = [classes[label] for label in manifest.classes[:VIDEOS]]
    grid = Grid(ClipSampling(frames=FRAMES), THUMBNAIL)
    source = DecodedFrames([sample.path for sample in shown], grid)
    numbered = range(len(shown))
    plain, trained = (
        Clips(source, numbered, numbered, grid, augment=augment, flip=True, pixels=augmentation)
        for augment in (False, True)
    )
    rows = 1 + TIMES
    figure = Figure(figsize=(1.3 * FRAMES, 1.05 * rows * len(shown)), layout="constrained")
    places = figure.subplots(rows * len(shown), 1)
    for index, sample in enumerate(shown):
        own = places[rows * index : rows * (index + 1)]
        own[0].set_title(sample.label, loc="left", fontsize=8, pad=2)
        for axes in own:
            axes.set_axis_off()
        try:
            clips = [plain[index][0]]
            for trained.epoch in range(TIMES):  # what is drawn at random follows from it
                clips.append(trained[index][0])
        except VideoError as error:
            own[0].text(0.0, 0.5, error.kind, color=WRONG, fontsize=7)
            continue
        for axes, clip in zip(own, clips, strict=True):
            axes.imshow(np.concatenate(list(clip.numpy()), axis=1))  # uint8 (H, T * W, 3)
    save(figure, path)
