"""The bundle: a folder that holds one model, whole and checked.

    bundle.json            the structs of spec.py, as JSON
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.errors import BundleError
from harec_deploy.files import atomic_write, locked, sha256
from harec_deploy.onnxfile import has_external_data
from harec_deploy.spec import SCHEMA, BundleSpec, FileRef

SPEC_FILE = "bundle.json"
WEIGHTS_FILE = "weights.safetensors"
CHECK_FILE = "check.npz"
MAX_SPEC_BYTES = 64 << 20


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


_Of = TypeVar("_Of", Path, Bundle)
_Others = ParamSpec("_Others")
_Result = TypeVar("_Result")

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


def alone(change: Callable[Concatenate[_Of, _Others], _Result]) -> Callable[Concatenate[_Of, _Others], _Result]:
    """Let only one process at a time change a bundle, which is the first argument.

    The function raises OutputLocked while another is at work, and BundleError where there is no bundle.
    """

    @wraps(change)
    def locking(of: _Of, /, *arguments: _Others.args, **options: _Others.kwargs) -> _Result:
        folder = _folder_of(of)
        _read_spec(folder)  # where there is none, nothing is locked
        with locked(folder / SPEC_FILE, "copy the bundle"):
            return change(of, *arguments, **options)

    return locking


def _folder_of(of: "Path | Bundle") -> Path:
    return of.folder if isinstance(of, Bundle) else of


def reread(bundle: Bundle) -> Bundle:
    """Return the bundle with bundle.json as it is now: another process may have added to it. Raises BundleError."""
    return replace(bundle, spec=_read_spec(bundle.folder))


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
