"""What is trained and how: a recipe, checked."""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from harec_deploy.decode import Size
from harec_deploy.errors import UsageError
from harec_deploy.models import ARCHITECTURES, CLIPWISE, hub
from harec_deploy.sampling import ClipSampling
from harec_deploy.spec import HeadSpec
from training.augment import UNCHANGED, Augmentation
from training.module import JITTERS, Optimisation

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is trained and how.

    freeze_encoder: train the head alone; of a frame-wise model, on stored features of the encoder.
    finetune_stages: of a pre-trained encoder, train this many last stages and freeze the others; 0 for all.
    flip: mirror half of the clips; wrong where classes differ by direction.
    jitter: how training clips are shifted in time, a key of module.JITTERS.
    """

    architecture: str
    sampling: ClipSampling
    size: Size
    head: HeadSpec
    optimisation: Optimisation
    augmentation: Augmentation = UNCHANGED
    encoder_weights: str | None = None
    freeze_encoder: bool = False
    finetune_stages: int = 0
    flip: bool = True
    jitter: str = "clip"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed {self.seed}: allowed are 0 to {2**32 - 1}")
        if self.jitter not in JITTERS:
            raise UsageError(f"--jitter {self.jitter}: allowed are {', '.join(JITTERS)}")
        if self.encoder_weights is not None:
            hub.network(self.architecture)
        if self.finetune_stages and (self.encoder_weights is None or self.freeze_encoder):
            raise UsageError("stages are chosen of a pre-trained encoder that is fine-tuned: give --encoder-weights")
        if self.freeze_encoder and self.architecture not in CLIPWISE and self.augmentation.changes_pixels:
            raise UsageError(
                "features of a frozen encoder are stored once, so crops and colours cannot change: leave them out, or "
                "train the encoder too with --finetune or --finetune-stages"
            )


def recipe_for(
    architecture: str,
    *,
    sampling: dict[str, Any],
    size: dict[str, Any],
    head: dict[str, Any],
    optimisation: dict[str, Any],
    augmentation: dict[str, Any] | None = None,
    **rest: Any,
) -> Recipe:
    """Return the architecture's recipe with what is given, and not None, in place of its defaults.

    Raises:
        UsageError: no such architecture, a value that is not allowed, or one that the architecture has no use for.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {architecture!r}; allowed are {', '.join(ARCHITECTURES)}")
    base = ARCHITECTURES[architecture]
    for name, value in head.items():
        if value not in (None, getattr(base.head, name, value)) and name not in base.head_options:
            raise UsageError(f"{architecture} has no {name}: of the head it takes {', '.join(base.head_options)} only")

    def changed(table: str, default: T, given: dict[str, Any]) -> T:
        base = msgspec.to_builtins(default)
        if unknown := sorted(given.keys() - base.keys()):
            raise UsageError(f"unknown field `{unknown[0]}` in [{table}]; allowed are {', '.join(base)}")
        wanted = base | {name: value for name, value in given.items() if value is not None}
        try:
            return msgspec.convert(wanted, type(default))
        except msgspec.ValidationError as error:
            raise UsageError(str(error)) from None

    return Recipe(
        architecture=architecture,
        sampling=changed("sampling", base.sampling, sampling),
        size=changed("size", base.size, size),
        head=changed("head", base.head, head),
        optimisation=changed("optimisation", Optimisation(), optimisation),
        augmentation=changed("augmentation", UNCHANGED, augmentation or {}),
        **rest,
    )
