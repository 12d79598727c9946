"""The bundle: a folder that holds one model, whole and checked.

    bundle.json            this page's structs, as JSON
    weights.safetensors    the PyTorch weights, the reference of every proof
    check.npz              a few real clips and the reference's logits: every machine tests itself on them
    onnx-fp32/             a variant: its graphs, `encoder.onnx` and `head.onnx`, or `model.onnx` for a clip-wise model
    onnx-fp32-fused/       the same two graphs in one `model.onnx`, for other programs
    tensorrt-fp16-sm90/    another: plain TensorRT plans, `encoder.plan` and `head.plan`, and the ONNX files they are of

The variant "torch" is the weights themselves and has no files. It is there without being named in bundle.json, which
names it once it has proofs.

Every file is named in bundle.json with its SHA-256 and is verified before anything reads it.
"""

import hashlib
import tokenize
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Size
from harec_deploy.errors import BundleError
from harec_deploy.files import atomic_write, sha256
from harec_deploy.onnxfile import has_external_data
from harec_deploy.sampling import ClipSampling

SCHEMA = 1
SPEC_FILE = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
CHECK_FILE = "check.npz"
MAX_SPEC_BYTES = 64 << 20
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
    """A clip whose label changed: the reference's label and its score, and the variant's."""

    clip: str
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
    share_reused: of all frames. times_faster: seconds of encoder and head without reuse to those with it.
    max_abs_dp: largest difference of any class probability in any window. flipped: videos with a window whose top
    class differs.
    """

    threshold: float
    variant: str
    runner: str
    precision: str
    videos: int
    windows: int
    share_reused: float
    times_faster: float
    top1_agreement: float
    max_abs_dp: float
    flipped: list[str]
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: its folder and what bundle.json says."""

    folder: Path
    spec: BundleSpec

    def path(self, file: FileRef) -> Path:
        """Return where a file of the bundle lies."""
        return self.folder / file.path

    def check_clips(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Return clips uint8 (K, T, H, W, 3) with the reference's logits float32 (K, C), or None if there are none.

        Raises:
            BundleError: the file is damaged or compressed, or its arrays do not fit the bundle.
        """
        if self.spec.check is None:
            return None
        path, size, frames = self.path(self.spec.check), self.spec.size, self.spec.sampling.frames
        try:
            with zipfile.ZipFile(path) as packed:
                if any(part.compress_type != zipfile.ZIP_STORED for part in packed.infolist()):
                    raise ValueError("it is compressed, so there is no telling what it unpacks to")
                clips, logits = (_array(packed, name) for name in ("clips.npy", "logits.npy"))
        except _BAD_ARRAYS as error:
            raise BundleError(f"{path} holds no check clips: {error}; export the bundle again") from None
        shapes = (len(logits), frames, size.height, size.width, 3), (len(clips), len(self.spec.classes))
        got = f"{clips.dtype} {clips.shape} with {logits.dtype} {logits.shape}"
        if got != (wanted := f"uint8 {shapes[0]} with float32 {shapes[1]}"):
            raise BundleError(f"{path}: check clips and logits are {got}, not {wanted}; export the bundle again")
        return clips, logits

    def fingerprint(self, variant: str) -> str:
        """Return a SHA-256 over all that decides the labels of ``variant``: graphs, classes, sampling, size."""
        spec = self.spec
        graphs: dict[str, Any] = {name: file.sha256 for name, file in sorted(spec.ways()[variant].graphs.items())}
        if not graphs:  # the weights, and what makes a model of them
            graphs = {"weights": spec.weights.sha256, "architecture": spec.architecture, "head": spec.head}
        parts = (graphs, spec.classes, spec.sampling, spec.size, spec.temperature)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


# What a damaged or hostile .npz raises; TokenError comes from NumPy's reading of the array's header.
_BAD_ARRAYS: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, EOFError, RuntimeError, MemoryError)
_BAD_ARRAYS += (TypeError, zipfile.BadZipFile, tokenize.TokenError)


def _array(packed: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with packed.open(name) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return np.atleast_1d(array)


def file_ref(folder: Path, path: Path) -> FileRef:
    """Describe a file that lies in the bundle's folder."""
    return FileRef(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256(path))


def save(folder: Path, spec: BundleSpec) -> Bundle:
    """Write bundle.json, atomically; the files it names must be in place."""
    with atomic_write(folder / SPEC_FILE) as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
    return Bundle(folder, spec)


def load(folder: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: no bundle, unknown schema version, a file missing, changed, outside the folder or not
            self-contained, classes that do not match the weights, weights that are not finite.
    """
    bundle = Bundle(folder, _read_spec(folder))
    for file in bundle.spec.files():
        _verify(folder, file)
    _check_weights(bundle)
    for variant in bundle.spec.variants.values():
        # A plan is TensorRT's, and its hash is all that there is to check.
        for file in (variant.engine.sources if variant.engine else variant.graphs).values():
            _check_onnx(bundle.path(file))  # under any name: a runner looks at the content only
    return bundle


def _read_spec(folder: Path) -> BundleSpec:
    path = folder / SPEC_FILE
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{folder} is no bundle: {SPEC_FILE} is no regular file")
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise BundleError(f"{path} has {path.stat().st_size} bytes, allowed are {MAX_SPEC_BYTES}")
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{folder} is no bundle: {SPEC_FILE} cannot be read ({error.strerror})") from None
    try:
        schema = msgspec.json.decode(text, type=_Schema).schema
        if schema != SCHEMA:
            raise BundleError(
                f"{path}: schema version {schema}; this harec-deploy reads {SCHEMA}: use a matching version"
            )
        return msgspec.json.decode(text, type=BundleSpec)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{path} is damaged or was edited: {error}") from None


class _Schema(msgspec.Struct):
    schema: int


def _verify(folder: Path, file: FileRef) -> None:
    try:
        _verify_file(folder, file)
    except (OSError, ValueError, RuntimeError) as error:  # no name that a file can have, a loop of links, no permission
        name = repr(file.path[:100])
        told = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{name} cannot be read from the bundle {folder}: {told}") from None


def _verify_file(folder: Path, file: FileRef) -> None:
    inside = PurePosixPath(file.path)
    path = folder / inside
    if inside.is_absolute() or ".." in inside.parts or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{file.path!r} leads out of the bundle {folder}: refused")
    if not path.is_file():
        raise BundleError(f"{path} is missing: copy the whole bundle again")
    if path.stat().st_size != file.size:
        raise BundleError(f"{path} has {path.stat().st_size} bytes, not {file.size}: copy the whole bundle again")
    if sha256(path) != file.sha256:
        raise BundleError(f"{path} was changed: its SHA-256 is not the one in {SPEC_FILE}; copy the whole bundle again")


def _check_weights(bundle: Bundle) -> None:
    path, classes = bundle.path(bundle.spec.weights), len(bundle.spec.classes)
    for name, values in read_safetensors(path):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise BundleError(f"{path}: {name} holds NaN or infinity: train again")
        if name == "head.classifier.weight" and values.shape[:1] != (classes,):
            given = values.shape[0] if values.ndim else "no"
            raise BundleError(f"{path}: the head gives {given} classes, {SPEC_FILE} names {classes}")


_DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}


class _TensorEntry(msgspec.Struct, frozen=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (name, tensor) of a safetensors file, as views of the mapped file, in its order; needs no package.

    Raises:
        BundleError: the file does not follow https://github.com/huggingface/safetensors (format): tensors that
            overlap or leave a hole, in which other data could hide, are refused too.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int(data[:8].view("<u8")[0])
        if length > len(data) - 8:
            raise ValueError(f"header of {length} bytes")
        header = msgspec.json.decode(data[8 : 8 + length].tobytes(), type=dict[str, Any])
        header.pop("__metadata__", None)
        entries = msgspec.convert(header, dict[str, _TensorEntry])
        tensors, at = data[8 + length :], 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            start, end = entry.data_offsets
            if start != at or end < start or min(entry.shape, default=0) < 0:
                raise ValueError(f"{name} of shape {entry.shape} lies at bytes {start} to {end}, expected at {at}")
            yield name, tensors[start:end].view(_DTYPES[entry.dtype]).reshape(entry.shape)
            at = end
        if at != len(tensors):
            raise ValueError(f"its tensors end at byte {at} of {len(tensors)}")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise BundleError(f"{path} is no safetensors file: {error}") from None


def _check_onnx(path: Path) -> None:
    try:
        external = has_external_data(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path} is no ONNX file: {error}") from None
    if external:
        raise BundleError(f"{path} keeps data in another file: refused; export it again, self-contained")
