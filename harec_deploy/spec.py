"""What bundle.json says: structs that are checked when they are made."""

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from harec_deploy.decode import Size
from harec_deploy.sampling import ClipSampling

SCHEMA = 1
WEIGHTS_VARIANT = "torch"
GRAPH_SETS: tuple[set[str], ...] = ({"encoder", "head"}, {"model"})  # of a frame-wise and of a clip-wise model


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the structs in bundle.json."""


class FileRef(_Part, frozen=True, kw_only=True):
    """A file of the bundle: posix path inside it, size in bytes, SHA-256 in hexadecimal digits."""

    path: str
    size: int
    sha256: str


class HeadSpec(_Part, frozen=True, kw_only=True):
    """The sequence model over the features of a clip's frames.

    pool: which of the T outputs are read: their maximum, their mean, or the last one.
    dense: width of a layer with ReLU between LSTM and classifier; 0 for none.
    An architecture without an LSTM takes dropout from here and leaves the rest.
    """

    hidden: int = 256
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.5
    pool: Literal["max", "mean", "last"] = "max"
    layer_norm: bool = True
    dense: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("hidden", self.hidden, 1, 8192),
            ("layers", self.layers, 1, 8),
            ("dropout", self.dropout, 0, 0.95),
            ("dense", self.dense, 0, 8192),
        ):
            if not low <= value <= high:
                raise ValueError(f"head.{name} is {value}; allowed are {low} to {high}")


class Flip(_Part, frozen=True, kw_only=True):
    """A clip whose label changed: the reference's label and its score, and the other's. truth: None if unknown."""

    clip: str
    truth: str | None = None
    wanted: str
    wanted_score: float
    got: str
    got_score: float

    def __str__(self) -> str:
        return f"{self.clip} ({self.wanted} {self.wanted_score:.2f} -> {self.got} {self.got_score:.2f})"


class Proof(_Part, frozen=True, kw_only=True):
    """What was measured when a variant ran on real clips beside the PyTorch reference.

    device: "cpu" or "cuda"; hardware: the GPU's name. decoder: what gave the clips.
    max_abs_dp: largest difference of any class probability on any clip.
    flipped: the clips whose top class differs; flips: the same with both labels.
    labelled: clips whose true class is known, by the name of their folder. accuracy, reference_accuracy: the shares of
    those that the variant and the reference have right.
    """

    runner: str
    runner_version: str
    precision: str
    device: str
    hardware: str = ""
    decoder: str = "pyav"
    clips: int
    top1_agreement: float
    max_abs_dp: float
    flipped: list[str]
    flips: list[Flip] = []
    labelled: int = 0
    accuracy: float | None = None
    reference_accuracy: float | None = None
    passed: bool


class Quantisation(_Part, frozen=True, kw_only=True):
    """How int8 graphs were made: how ranges were chosen, on how many frames of how many clips.

    kept_float: the layers that were left in float, of all ``layers`` that could be quantised, the most sensitive first.
    """

    method: str
    clips: int
    frames: int
    layers: int
    kept_float: list[str] = []


class EngineSpec(_Part, frozen=True, kw_only=True):
    """What TensorRT plans were built with and for.

    tensorrt: its version. gpu, capability: the GPU's name and compute capability, such as "9.0".
    workspace_bytes: scratch memory that a kernel may take, at most; None for all that the GPU has.
    profiles: of each graph, the smallest, tuned and largest batch of each optimisation profile.
    sources: of each graph, the ONNX file that it was built from; it lies beside the plan, to be built again elsewhere.
    """

    tensorrt: str
    gpu: str
    capability: str
    hardware_compatible: bool = False
    version_compatible: bool = False
    optimization_level: int = 3
    workspace_bytes: int | None = None
    lstm: Literal["unroll", "op"] = "unroll"
    profiles: dict[str, list[tuple[int, int, int]]]
    sources: dict[str, FileRef]


class Variant(_Part, frozen=True, kw_only=True):
    """One executable form of the model: its graphs, who made them, and a proof for each runner that was tried.

    precision: the types of the graphs. engine: of TensorRT plans; the graphs of other variants are ONNX files.
    graphs: none where the weights are executed as they are. quantisation: of int8 graphs.
    """

    precision: str
    graphs: dict[str, FileRef]
    made_with: dict[str, str]
    proofs: list[Proof]
    engine: EngineSpec | None = None
    quantisation: Quantisation | None = None

    @property
    def is_onnx(self) -> bool:
        """The graphs are ONNX files."""
        return bool(self.graphs) and self.engine is None

    def proof(self, runner: str, precision: str, device: str = "cpu") -> Proof | None:
        """Return the proof of running this variant on ``runner`` in ``precision``, or None if it was not tried.

        Of several it is that with the reference decoder's frames, which comes first.

        device: "cpu", "cuda", or one of several GPUs, "cuda:1".
        """
        wanted = (runner, precision, device.partition(":")[0])
        return next((p for p in self.proofs if (p.runner, p.precision, p.device) == wanted), None)


class DecoderProof(_Part, frozen=True, kw_only=True):
    """What was measured when a decoder gave the frames of real clips beside the reference decoder.

    device: "cpu" or "cuda". refused: clips that it left to the reference decoder.
    mean_level_difference, max_level_difference: of pixels, in levels of 0 to 255.
    max_abs_dp, flipped: of the labels that the same runner gives for both.
    """

    decoder: str
    decoder_version: str
    device: str
    hardware: str = ""
    clips: int
    refused: int
    mean_level_difference: float
    max_level_difference: int
    top1_agreement: float
    max_abs_dp: float
    flipped: list[str]
    passed: bool


class ReuseProof(_Part, frozen=True, kw_only=True):
    """What was measured when frames took over the features of an earlier one, beside the same runner without that.

    threshold: in levels, see ``reuse.difference``. variant, runner, precision: that labelled both.
    window_s, stride_s: of the windows that were compared; None where each video was one.
    share_reused: of all frames. encoder_saved: share of the encoder's seconds, with its 95 % interval.
    times_faster: seconds of all but decoding without reuse to those with it, comparing frames included. Both were
        measured in turns; of fewer than 6 turns there is no interval.
    top1_interval: of 95 %; windows that overlap count in it by what is theirs alone.
    mean_abs_dp: over windows and classes; max_abs_dp: of any class in any window.
    flipped: videos with a window whose top class differs; flips: those windows.
    """

    threshold: float
    variant: str
    runner: str
    precision: str
    window_s: float | None = None
    stride_s: float | None = None
    videos: int
    windows: int
    share_reused: float
    encoder_saved: float
    encoder_saved_interval: tuple[float, float] | None = None
    times_faster: float
    times_faster_interval: tuple[float, float] | None = None
    top1_agreement: float
    top1_interval: tuple[float, float]
    mean_abs_dp: float
    max_abs_dp: float
    flipped: list[str]
    flips: list[Flip] = []
    passed: bool


class BundleSpec(_Part, frozen=True, kw_only=True):
    """All of bundle.json.

    feature_dim: D, the width of a frame's features; 0 for a clip-wise model, whose frames have none of their own.
    temperature: logits are divided by it before the softmax.
    training: where the weights come from: data, split, seed, versions, metrics. Free form.
    decoders: the proof of each decoder but the reference. reuse: of each threshold for features of earlier frames.
    """

    schema: int = SCHEMA
    architecture: str
    head: HeadSpec
    feature_dim: int
    classes: list[str]
    sampling: ClipSampling
    size: Size
    weights: FileRef
    temperature: float = 1.0
    check: FileRef | None = None
    training: dict[str, Any] = {}
    variants: dict[str, Variant] = {}
    decoders: list[DecoderProof] = []
    reuse: list[ReuseProof] = []

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes are {len(self.classes)} names; at least 2 are needed, all different")
        if any(not name.strip() or not name.isprintable() for name in self.classes):
            raise ValueError("a class name is empty or holds unprintable characters")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}; allowed are 0.01 to 100")
        for name, variant in self.variants.items():
            graphs, weights = set(variant.graphs), name == WEIGHTS_VARIANT
            if graphs if weights else graphs not in GRAPH_SETS:
                wanted = "none" if weights else "encoder and head, or model"
                raise ValueError(f"variant {name!r} has graphs {sorted(graphs)}; expected {wanted}")
            engine = variant.engine
            if engine and not (engine.sources.keys() == graphs and engine.profiles.keys() == graphs):
                raise ValueError(f"variant {name!r} has not an ONNX source and profiles for each of its plans")

    def ways(self) -> dict[str, Variant]:
        """Return every variant that can be executed, by name: those of bundle.json, and the weights."""
        weights = Variant(precision="fp32", graphs={}, made_with={}, proofs=[])
        return {**self.variants, WEIGHTS_VARIANT: self.variants.get(WEIGHTS_VARIANT, weights)}

    def fused(self, variant: str) -> bool:
        """Tell whether a variant is encoder and head in one graph, which only other programs have a use for."""
        return self.feature_dim > 0 and "model" in self.ways()[variant].graphs

    def variant_bytes(self, name: str) -> int:
        """Return the size of what a variant executes: its graphs, or the weights."""
        return sum(file.size for file in self.ways()[name].graphs.values() or [self.weights])

    def files(self) -> Iterator[FileRef]:
        """Yield every file of the bundle but bundle.json."""
        yield self.weights
        if self.check:
            yield self.check
        for variant in self.variants.values():
            yield from variant.graphs.values()
            if variant.engine:
                yield from variant.engine.sources.values()
