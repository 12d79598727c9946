"""Which decoders a run uses: one video at a time on CPU cores, several at a time with DALI, or both from one queue."""

from typing import NamedTuple

from harec_deploy.decode import DECODERS, has_dali, need_dali
from harec_deploy.devices import resolve
from harec_deploy.errors import UsageError
from harec_deploy.label.child import PYAV, BatchPlan, Limits

CHOICES = ("auto", PYAV, "dali", "both")
GPU_CHILDREN = 2  # so that one reads packets while the other decodes
MIN_SILENCE_S = 60.0  # of a child that begins: CUDA takes its time


class Choice(NamedTuple):
    """The decoders of a run; reason: why these, in a few words."""

    name: str
    device: str
    reason: str

    def batch_plan(self, limits: Limits) -> BatchPlan | None:
        """Return the plan of the second decoder, None where there is none."""
        if self.name == PYAV:
            return None
        return BatchPlan(
            name="dali",
            decoder=DECODERS["dali"],
            device=self.device,
            children=1 if self.device == "cpu" else GPU_CHILDREN,
            shared=self.name == "both",
            silence_s=max(limits.seconds, MIN_SILENCE_S),
        )


def choose_decoders(asked: str, device: str, begun: str | None = None) -> Choice:
    """Return what ``--decoder`` stands for on a device, as ``devices.resolve`` reads it.

    begun: what the journal was begun with, which "auto" keeps.

    Raises:
        UsageError: there is no such choice, or no GPU and the CPU was not named.
        MissingDependency: DALI is asked for and not installed.
    """
    if asked not in CHOICES:
        raise UsageError(f"--decoder {asked}: allowed are {', '.join(CHOICES)}")
    place = resolve(device)[0]
    name, reason = asked, "asked for"
    if asked == "auto" and begun in CHOICES:
        name, reason = begun, "the journal was begun with it"
    elif asked == "auto":
        name = "both" if place != "cpu" and has_dali() else PYAV
        reason = (
            "a GPU and DALI are here" if name == "both" else "no GPU" if place == "cpu" else "DALI is not installed"
        )
    if name == PYAV:
        return Choice(PYAV, "cpu", reason)
    need_dali(f"--decoder {name}")
    if place == "cpu" and device == "auto":
        told = f"--decoder {name}: there is no GPU here; --decoder pyav needs none"
        raise UsageError(f"{told}, and with --device cpu DALI decodes VP8, VP9 and MJPEG")
    return Choice(name, place, reason)
