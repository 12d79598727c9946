"""Random changes of a training clip's pixels: one crop and one change of colour for all of its frames.

An action is in how frames differ, so what is drawn at random is drawn once a clip.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is changed, and how far; nothing unless told.

    crop: least share of the picture's area that is kept and scaled back to its size, as in Szegedy et al. 2015; 1: all.
    aspect: times that what is kept may be wider or narrower in shape than the picture, at most.
    colour: brightness, contrast and saturation are each multiplied by 1 - colour to 1 + colour.
    hue: share of the colour circle that hues move along, at most.
    """

    crop: float = 1.0
    aspect: float = 4 / 3
    colour: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("crop", self.crop, 0.01, 1),
            ("aspect", self.aspect, 1, 4),
            ("colour", self.colour, 0, 0.95),
            ("hue", self.hue, 0, 0.5),
        ):
            if not low <= value <= high:
                raise ValueError(f"augmentation.{name} is {value}; allowed are {low} to {high}")

    @property
    def changes_pixels(self) -> bool:
        """Something is changed at all."""
        return self.crop < 1 or self.colour > 0 or self.hue > 0

    def __call__(self, frames: Tensor) -> Tensor:
        """Return a clip uint8 (T, H, W, 3), changed by what torch's random numbers say."""
        height, width = frames.shape[1:3]
        pixels = frames.permute(0, 3, 1, 2)  # (T, 3, H, W)
        if self.crop < 1:
            shape = width / height
            ratio = (shape / self.aspect, shape * self.aspect)
            pixels = v2.RandomResizedCrop((height, width), scale=(self.crop, 1.0), ratio=ratio)(pixels)
        if self.colour or self.hue:
            jitter = v2.ColorJitter(self.colour, self.colour, self.colour, self.hue)
            pixels = jitter(pixels.contiguous())  # twice as quick as with channels last
        changed: Tensor = pixels.permute(0, 2, 3, 1)
        return changed.contiguous(memory_format=torch.contiguous_format)


UNCHANGED = Augmentation()
