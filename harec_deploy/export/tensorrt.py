"""The variants `tensorrt-<precision>-sm<capability>`: plans for the GPU that is here, proved on it, and built again."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle, alone, file_ref, load, reread, save
from harec_deploy.decode import Decoder
from harec_deploy.devices import CudaDevice, cuda_device, resolve
from harec_deploy.errors import BundleError, HarecError, MissingDependency, UsageError
from harec_deploy.export import check_clips_of, in_folder, write_check
from harec_deploy.export.timing import TimingCache
from harec_deploy.export.verify import Check, ProofClips, failure, prove, read_clips, reference_logits, through
from harec_deploy.files import atomic_folder
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, Runner, get
from harec_deploy.spec import BundleSpec, EngineSpec, FileRef, Variant

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LSTMS = ("unroll", "op")
TUNES = ("frames", "clips")
INT8_SOURCE = "onnx-int8"
# What a graph's first axis counts: frames of the encoder, clips of the others. Each bucket has kernels of its own.
BUCKETS = {"encoder": (1, 8, 32, 128), "head": (1, 8, 32, 128), "model": (1, 2, 4, 8)}
WHOLE_CLIPS = (1, 2, 4, 8)  # the encoder's buckets where it is tuned for clips
AMPERE = (8, 0)

Progress = Callable[[str], None]
Bar = Callable[[float, str], None]  # the share of a build that is done, 0 to 1, and what is being done


@alone
def export_tensorrt(
    folder: Path,
    clips: Sequence[str] = (),
    *,
    precision: str,
    lstm: str = "unroll",
    device: str = "auto",
    workspace_bytes: int | None = None,
    optimization_level: int = 3,
    hardware_compatible: bool = False,
    version_compatible: bool = False,
    tune: str = "frames",
    max_clips: int = 100,
    decoder: Decoder | None = None,
    progress: Progress = lambda text: None,
    bar: Bar = lambda share, note: None,
) -> Bundle:
    """Build and prove TensorRT plans of the bundle in ``folder``, for the GPU that ``device`` names.

    clips: as of ``export``. precision: of the ONNX files that are built; "int8" takes those of the variant onnx-int8.
    lstm: "unroll" writes the LSTM out for the bundle's clip length, "op" leaves it a loop; of int8 it is as exported.
    workspace_bytes: scratch memory that a kernel may take, at most. optimization_level: 0 to 5; more builds longer.
    hardware_compatible: the plans run on every GPU from Ampere on; version_compatible: on later TensorRT versions too.
    tune: the encoder's fixed batches are numbers of "frames", or whole "clips", for folders of short videos.
    decoder: what labelling would use beside the reference decoder; the labels of its clips are proved too.
    bar: is called from another thread while a plan is built.

    Raises:
        MissingDependency: TensorRT, or what proves its plans, is not installed.
        UsageError: no GPU, or a value that is not allowed.
        BundleError: the bundle is damaged, or TensorRT refuses a graph.
        ProofError: the plans give other labels than PyTorch; then nothing is left at the variant's place.
    """
    site = _site("harec-deploy export --tensorrt", device)
    _check(site.gpu, precision, lstm, tune, optimization_level, hardware_compatible)
    from harec_deploy.export.onnx import write_graphs
    from harec_deploy.models import from_bundle

    bundle = load(folder)
    if precision == "int8" and INT8_SOURCE not in bundle.spec.variants:
        raise UsageError(f"int8 plans are built of the variant {INT8_SOURCE}, which {folder} has not: export it first")
    model = from_bundle(bundle)
    progress("decoding clips for the proof")
    real = read_clips(bundle.spec, clips or bundle.spec.training.get("proof_clips", []), max_clips)
    progress(f"labelling {len(real.names)} clips with PyTorch")
    logits = reference_logits(model, real)
    clips_by_decoder = [real]
    if decoder is not None:
        progress(f"decoding them once more, with {decoder.name}")
        clips_by_decoder.append(through(decoder, real, bundle.spec))
    types = {"precision": precision, "lstm": lstm}

    def write(staging: Path) -> dict[str, Path]:
        progress(f"writing ONNX graphs in {precision}")
        if precision == "int8":
            return _copy(bundle, bundle.spec.variants[INT8_SOURCE].graphs, staging)
        return write_graphs(model, bundle.spec, staging, **types)

    describe = partial(
        _described,
        site,
        bundle,
        tune,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        optimization_level=optimization_level,
        workspace_bytes=workspace_bytes,
    )
    packages = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    others = bundle.spec.variants.keys() - {variant_name(precision, site.gpu)}
    check = check_clips_of(bundle) if others else None  # they were proved to be near it, so it stays
    order = _Order(precision, write, describe, packages, clips_by_decoder, logits, check)
    kept = bundle if check else Bundle(folder, msgspec.structs.replace(bundle.spec, check=None))
    spec = _place(kept, order, site, progress, bar)
    return save(folder, spec if check else msgspec.structs.replace(spec, check=write_check(folder, real, logits)))


@alone
def rebuild(
    bundle: Bundle,
    variant: str,
    device: str = "auto",
    *,
    progress: Progress = lambda text: None,
    bar: Bar = lambda share, note: None,
) -> Bundle:
    """Build the plans of ``variant`` again, of the same ONNX files with the same settings, for the GPU that is here.

    The new variant is called ``variant_name(precision, gpu)``; one of that name is replaced, and others stay. It is
    proved on the bundle's check clips, so neither PyTorch nor videos are needed.

    Raises:
        MissingDependency: TensorRT, or what proves its plans, is not installed.
        UsageError: no GPU, or no such variant of TensorRT plans.
        BundleError: there are no check clips, or TensorRT refuses a graph.
        ProofError: the plans give other labels than the reference did; then the bundle is as it was.
    """
    site, bundle = _site("rebuilding TensorRT plans", device), reread(bundle)
    old = bundle.spec.variants.get(variant)
    if old is None or old.engine is None:
        there = ", ".join(name for name, each in bundle.spec.variants.items() if each.engine) or "none"
        raise UsageError(f"{variant} is no variant of TensorRT plans; {bundle.folder} has {there}")
    engine, check = old.engine, bundle.check_clips()
    if check is None:
        raise BundleError(f"{bundle.folder} has no check clips to prove plans on: run harec-deploy export --tensorrt")
    pixels, logits = check
    real = ProofClips([f"check clip {place + 1}" for place in range(len(pixels))], pixels)

    def describe(sources: dict[str, FileRef]) -> EngineSpec:
        here = {"tensorrt": site.version, "gpu": site.gpu.name, "capability": _capability(site.gpu)}
        return msgspec.structs.replace(engine, **here, sources=sources)

    def write(staging: Path) -> dict[str, Path]:
        return _copy(bundle, engine.sources, staging)

    order = _Order(old.precision, write, describe, old.made_with, [real], logits, None)
    return save(bundle.folder, _place(bundle, order, site, progress, bar))


def variant_name(precision: str, gpu: CudaDevice) -> str:
    """Return what plans of a precision for a kind of GPU are called."""
    return f"tensorrt-{precision}-sm{''.join(map(str, gpu.capability))}"


def _described(site: "_Site", bundle: Bundle, tune: str, sources: dict[str, FileRef], **settings: Any) -> EngineSpec:
    """Say what the plans of ONNX files are built with and for; settings: those that EngineSpec has."""
    return EngineSpec(
        tensorrt=site.version,
        gpu=site.gpu.name,
        capability=_capability(site.gpu),
        lstm=_lstm_of(bundle.path(file) for file in sources.values()),
        profiles={graph: _profiles(graph, bundle.spec.sampling.frames, tune) for graph in sources},
        sources=sources,
        **settings,
    )


@dataclass(frozen=True, slots=True)
class _Site:
    """Where plans are built and proved: export/plan.py, which needs TensorRT, the GPU, and the runner on it."""

    plan: ModuleType
    gpu: CudaDevice
    runner: Runner

    @property
    def version(self) -> str:
        return str(self.plan.VERSION)


def _site(purpose: str, device: str) -> _Site:
    """Return what the machine has, before anything takes long. Raises MissingDependency, UsageError and HarecError."""
    try:
        plan = import_module("harec_deploy.export.plan")
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "tensorrt", "tensorrt", purpose) from None
    except ImportError as error:  # the package is there and a library of its own, or of CUDA, is not
        raise HarecError(
            f"TensorRT is installed and cannot be loaded: {' '.join(str(error).split())}; install it anew: "
            "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13"
        ) from None
    gpus = [place for place in resolve(device) if place.startswith("cuda")]
    if not gpus:
        raise UsageError(f"{purpose} needs the GPU that is to run the plans, and there is none on device {device}")
    gpu = cuda_device(gpus[0])
    return _Site(plan, gpu, get("tensorrt", str(gpu)))


def _check(gpu: CudaDevice, precision: str, lstm: str, tune: str, level: int, hardware_compatible: bool) -> None:
    for name, value, allowed in (
        ("precision", precision, PRECISIONS),
        ("lstm", lstm, LSTMS),
        ("tune", tune, TUNES),
        ("optimization level", level, range(6)),
    ):
        if value not in allowed:
            raise UsageError(f"{name} {value} of TensorRT plans: allowed are {', '.join(map(str, allowed))}")
    if hardware_compatible and gpu.capability < AMPERE:
        raise UsageError(
            f"hardware-compatible plans are built on GPUs from compute capability 8.0 on; {gpu.name} has "
            f"{_capability(gpu)}: leave --hardware-compatible out"
        )


@dataclass(frozen=True, slots=True)
class _Order:
    """A variant to be made: what writes its ONNX files, what describes its plans, and what ``prove`` takes.

    clips: of the reference decoder, and of another that labelling would use.
    """

    precision: str
    write: Callable[[Path], dict[str, Path]]
    describe: Callable[[dict[str, FileRef]], EngineSpec]
    packages: dict[str, str]
    clips: Sequence[ProofClips]
    logits: NDArray[np.float32]
    check: Check | None


def _place(bundle: Bundle, order: _Order, site: _Site, progress: Progress, bar: Bar) -> BundleSpec:
    """Build and prove the variant, put its folder in place and return the spec that names it, which is to be saved."""
    folder, spec, name = bundle.folder, bundle.spec, variant_name(order.precision, site.gpu)
    with atomic_folder(folder / name) as staging:
        engine = order.describe({graph: file_ref(folder, path) for graph, path in order.write(staging).items()})
        plans = _build(folder, staging, engine, site, progress, bar)
        made_with = {**order.packages, "tensorrt": site.version}
        variant = Variant(precision=order.precision, graphs=plans, made_with=made_with, proofs=[], engine=engine)
        # Fewer clips than the proof's, and perhaps of other weights: they are no check of this variant yet.
        trial = Bundle(folder, msgspec.structs.replace(_with(spec, name, variant), check=None))
        execution = Execution(name, site.runner, order.precision)
        progress(f"proving {execution}")
        recognizer = Recognizer(trial, execution)
        proofs = [prove(recognizer, clips, order.logits, order.check) for clips in order.clips]
        for proof in proofs:
            if not proof.passed:
                raise failure(execution, proof)
        # From here until the caller saves, the bundle has no such variant: a kill in between leaves one that says so.
        others = {other: each for other, each in spec.variants.items() if other != name}
        save(folder, msgspec.structs.replace(spec, variants=others))
    engine = msgspec.structs.replace(engine, sources=_moved(engine.sources, name))
    placed = msgspec.structs.replace(variant, graphs=_moved(plans, name), proofs=proofs, engine=engine)
    return _with(spec, name, placed)


def _build(
    folder: Path, staging: Path, engine: EngineSpec, site: _Site, progress: Progress, bar: Bar
) -> dict[str, FileRef]:
    timing = TimingCache(site.gpu, site.version, progress)
    plans = {}
    for graph, source in engine.sources.items():
        progress(f"building {graph}.plan with TensorRT {site.version} for {site.gpu.name}")
        path = staging / f"{graph}.plan"
        profiles = engine.profiles[graph]
        path.write_bytes(
            site.plan.build(folder / source.path, profiles, engine, device=site.gpu, timing=timing, bar=bar)
        )
        plans[graph] = file_ref(folder, path)
    return plans


def _profiles(graph: str, clip_frames: int, tune: str) -> list[tuple[int, int, int]]:
    """Return a profile for each fixed batch, and one, tuned for a middling batch, for all up to the largest."""
    buckets: tuple[int, ...] = BUCKETS[graph]
    if graph == "encoder" and tune == "clips":
        buckets = tuple(clip_frames * count for count in WHOLE_CLIPS)
    return [*((count, count, count) for count in buckets), (1, buckets[-2], buckets[-1])]


def _lstm_of(sources: Iterable[Path]) -> Literal["unroll", "op"]:
    import onnx

    nodes = (node for path in sources for node in onnx.load(path, load_external_data=False).graph.node)
    return "op" if any(node.op_type == "LSTM" for node in nodes) else "unroll"


def _capability(gpu: CudaDevice) -> str:
    return ".".join(map(str, gpu.capability))


def _copy(bundle: Bundle, files: dict[str, FileRef], staging: Path) -> dict[str, Path]:
    return {graph: Path(shutil.copy(bundle.path(file), staging / f"{graph}.onnx")) for graph, file in files.items()}


def _moved(files: dict[str, FileRef], folder: str) -> dict[str, FileRef]:
    return {graph: in_folder(file, folder) for graph, file in files.items()}


def _with(spec: BundleSpec, name: str, variant: Variant) -> BundleSpec:
    return msgspec.structs.replace(spec, variants={**spec.variants, name: variant})
