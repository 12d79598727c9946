"""The labelling run: discover, decode ahead, classify in shared batches, write a row a video, say what bounded it."""

import os
import shlex
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from harec_deploy import __version__
from harec_deploy.bundle import load as load_bundle
from harec_deploy.decode import DECODERS
from harec_deploy.devices import engine_devices
from harec_deploy.discover import Discovery, VideoFile, discover
from harec_deploy.errors import HarecError, OutputError, PlanRefused, UsageError
from harec_deploy.files import atomic_write
from harec_deploy.label import outputs
from harec_deploy.label.annotate import annotate_all
from harec_deploy.label.child import PYAV, BatchPlan, Limits, Plan
from harec_deploy.label.decoders import Choice, choose_decoders
from harec_deploy.label.engine import Engine, Labelled, Stages
from harec_deploy.label.engine_messages import Load, Loaded, Work
from harec_deploy.label.engines import Engines, Here, load_engines
from harec_deploy.label.features import FeatureStore
from harec_deploy.label.journal import Header, Journal, Key, Place, Rows, make_row, read_header, summary_path
from harec_deploy.label.options import Options, Progress
from harec_deploy.label.summary import Summary, Tally, counted
from harec_deploy.label.workers import allow_open_files, decode_ahead
from harec_deploy.loading import load
from harec_deploy.machine import cores
from harec_deploy.recognizer import Recognizer, VideoResult
from harec_deploy.sampling import Windowing
from harec_deploy.segments import UNKNOWN
from harec_deploy.spec import BundleSpec


def label(bundle: Path, inputs: Sequence[str], options: Options) -> Summary:
    """Label every video of ``inputs`` that is not in the journal yet, and write the outputs.

    Raises:
        UsageError: an input does not exist, there is no video in any, or an option is not allowed.
        BundleError: the bundle is damaged.
        OutputError: the output cannot be written, or belongs to a run with other settings.
        OutputLocked: another run writes the same journal.
        EngineError: of several devices, none is left that labels.
    """
    options.check()
    allow_open_files(options.workers or cores())
    found = _discover(inputs, options)
    begun = None if options.restart else read_header(options.journal)
    decoders = choose_decoders(options.decoder, options.device, begun.decoder if begun else None)
    with ExitStack() as held:
        engines = held.enter_context(closing(_load(bundle, options, begun)))
        stages, header = engines.stages, make_header(engines.loaded, options, decoders.name)
        plan = make_plan(engines.loaded, header.windows, options.limits, decoders)
        stages.plan(plan)
        decoding = f"{stages.workers} decoding" + ("" if options.workers else ", one for each core")
        if plan.batch:
            decoding += f", and {decoders.name} with {plan.batch.name} on {plan.batch.device} ({decoders.reason})"
            decoding += _unproved(plan.batch, engines.loaded.spec)
        decoding += _reuse_told(header, engines.loaded.spec, bundle)
        options.announce(f"{_told(found, header)}; {engines.execution} ({engines.loaded.reason}); {decoding}")
        start = time.perf_counter()
        journal = held.enter_context(Journal(options.journal, header, restart=options.restart))
        store = None
        if options.features:
            store = FeatureStore(options.journal, journal.places.values(), engines.loaded.spec.feature_dim)
            held.callback(store.close)
        offsets, todo = _sort_out(found.videos, journal.places, store, retry=options.retry_failed)
        work = Work(
            plan=plan,
            min_score=header.min_score,
            features=header.features,
            reuse_threshold=header.reuse_threshold,
        )
        tally, total = Tally(), len(found.videos)
        for labelled in engines.label(todo, work, options.stop):
            vectors = _keep_vectors(store, labelled)
            row = make_row(labelled.video, labelled.result, header, vectors, decoder=labelled.route)
            begun_s = time.perf_counter()
            offsets[todo[labelled.video]] = journal.append(row)
            stages.write_s += time.perf_counter() - begun_s
            tally.add(row)
            stages.wall_s = time.perf_counter() - start
            there = total - len(todo) + tally.done
            options.progress(Progress(there, total, tally.done, tally.failed, row, stages))
            if tally.failed >= options.error_limit(total) and not tally.stopped:
                tally.stopped = f"{tally.failed} of {total} videos failed (--max-errors {options.max_errors})"
                options.stop.set()
        stages.wall_s = time.perf_counter() - start
        left = len(todo) - tally.done
        stopped = (tally.stopped or "interrupted") if left else ""
        rows = Rows(options.journal, [offset for offset in offsets if offset >= 0])
        summary = Summary(rows, *counted(rows), left, tally.done, tally.media_s, stages, found.ignored, stopped)
        done = {video.key for video in todo} if options.annotate else set()
        _write_outputs(options, summary, store, done, journal.header.begun_s)
    return summary


def _discover(inputs: Sequence[str], options: Options) -> Discovery:
    found = discover(
        inputs,
        all_files=options.all_files,
        follow_links=options.follow_links,
        but=options.written(),
        shard=options.shard,
    )
    if not found.videos and not found.elsewhere:
        passed_over = ", ".join(f"{count} {what}" for what, count in found.ignored.items()) or "no files"
        raise UsageError(f"no videos in {', '.join(inputs)} ({passed_over} passed over; --all-files takes every file)")
    return found


def _told(found: Discovery, header: Header) -> str:
    told = f"{len(found.videos)} videos"
    return f"{told} of {len(found.videos) + found.elsewhere}, shard {header.shard}" if header.shard else told


def _load(bundle: Path, options: Options, begun: Header | None) -> Here | Engines:
    runner, precision, variant = options.runner, options.precision, options.variant
    if begun and runner == "auto":
        runner = begun.runner
    if begun and precision == "auto":
        precision = begun.precision
    if begun and variant == "auto":
        variant = begun.variant
    devices = engine_devices(options.device)
    for device in dict.fromkeys(devices) if options.rebuild else ():
        _rebuild(bundle, runner, precision, device, options)
    asked = Load(
        bundle=os.fsencode(bundle),
        device=options.device,
        runner=runner,
        precision=precision,
        variant=variant,
    )
    engines = load_engines(asked, devices, options.workers or cores(), options.announce)
    try:
        if options.features and not engines.loaded.framewise:
            raise UsageError("--features: this model takes whole clips and has no features of frames")
        if options.reuse_threshold is not None and not engines.loaded.framewise:
            raise UsageError("--reuse-threshold: this model takes whole clips and has no features of frames to reuse")
        if options.min_score and UNKNOWN in engines.loaded.spec.classes:
            told = f"the bundle has a class {UNKNOWN!r} of its own, so rows could not tell them apart"
            raise UsageError(f"--min-score: {told}")
    except UsageError:
        engines.close()
        raise
    return engines


def _rebuild(bundle: Path, runner: str, precision: str, device: str, options: Options) -> None:
    """Build the plans again that do not fit a device."""
    assert options.rebuild is not None
    refused: list[HarecError]
    try:
        refused = load(bundle, runner=runner, precision=precision, device=device).refused
    except PlanRefused as error:
        refused = [error]
    for misfit in refused:
        if isinstance(misfit, PlanRefused):
            options.announce(f"building TensorRT plans again: {str(misfit).partition(': build')[0]}")
            options.rebuild(load_bundle(bundle), misfit.variant, misfit.device)


def _unproved(batch: BatchPlan, spec: BundleSpec) -> str:
    """Say that a decoder was not held against the reference for this bundle, or failed; "" if it passed."""
    kind = batch.device.partition(":")[0]
    proof = next((each for each in spec.decoders if (each.decoder, each.device) == (batch.name, kind)), None)
    if proof and proof.passed:
        return ""
    found = f"failed its proof, {proof.top1_agreement:.1%} of labels kept" if proof else "has no proof for this bundle"
    return f"; {batch.name} on {kind} {found}: see harec-deploy verify --decoder {batch.name}"


def _reuse_told(header: Header, spec: BundleSpec, bundle: Path) -> str:
    """Say that frames reuse features, and what that was proved to do to labels; "" if it is off."""
    threshold = header.reuse_threshold
    if threshold is None:
        return ""
    told = f"; frames at most {threshold:g} levels from an earlier one take its features: "
    # What leaves labels as they are with more frames reused does so with fewer.
    proofs = [p for p in spec.reuse if p.passed and p.variant == header.variant and p.threshold >= threshold]
    if not proofs:
        how = f"--variant {header.variant} --reuse-threshold {threshold:g}"
        if windows := header.windows:
            how += f" --window {windows.window_s:g}s --stride {windows.stride_s:g}s"
        return told + f"no proof for this bundle; harec-deploy verify {shlex.quote(str(bundle))} CLIPS {how} makes it"
    proof = min(proofs, key=lambda each: each.threshold)
    kept = f"{proof.top1_agreement:.1%} of {proof.windows} windows kept their label"
    return told + f"proved up to {proof.threshold:g} levels, {kept}"


def make_header(loaded: Loaded, options: Options, decoder: str = PYAV) -> Header:
    """Return the header of a run with this recogniser; decoder: a name of decoders.CHOICES but "auto"."""
    return Header(
        bundle=loaded.fingerprint,
        variant=loaded.variant,
        runner=loaded.runner,
        precision=loaded.precision,
        decoder=decoder,
        top_k=options.top_k,
        harec_deploy=__version__,
        windows=options.windowing(loaded.spec.sampling.frames),
        min_score=options.min_score,
        features=options.features is not None,
        shard=str(options.shard) if options.shard else None,
        reuse_threshold=options.reuse_threshold,
    )


def make_plan(
    recognizer: Recognizer | Loaded,
    windowing: Windowing | None = None,
    limits: Limits | None = None,
    decoders: Choice | None = None,
) -> Plan:
    """Return what the decoding children are to do for this recogniser; by default each decodes one video at a time."""
    limits = limits or Limits()
    return Plan(
        decoder=DECODERS[PYAV],
        sampling=recognizer.spec.sampling,
        size=recognizer.spec.size,
        count=recognizer.part_frames,
        windowing=windowing,
        limits=limits,
        batch=decoders.batch_plan(limits) if decoders else None,
    )


def _keep_vectors(store: FeatureStore | None, labelled: Labelled) -> tuple[int, int] | None:
    if store is None or labelled.vectors is None:
        return None
    return store.append(labelled.windows, labelled.vectors)


def _write_outputs(
    options: Options, summary: Summary, store: FeatureStore | None, done: set[Key], begun_s: float
) -> None:
    """Write the tables of a run that came to its end, and in any case the summary."""
    if not summary.stopped:
        if options.out.suffix in outputs.WRITERS:
            with _writing(options.out):
                outputs.WRITERS[options.out.suffix](options.out, summary.rows)
        if store and options.features:
            with _writing(options.features):
                store.write(options.features, summary.rows)
        if options.vtt:
            with _writing(options.vtt):
                outputs.write_vtt(options.vtt, summary.rows)
        if options.annotate:
            _annotate(options.annotate, options, summary, done, begun_s)
    path = summary_path(options.journal)
    if summary.done or not path.exists():  # a run that found nothing to do says nothing about speed
        with _writing(path), atomic_write(path) as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(summary.facts()), indent=2) + b"\n")


def _annotate(folder: Path, options: Options, summary: Summary, done: set[Key], begun_s: float) -> None:
    """Make a copy of each video that was labelled in this run, or has none since the journal was begun."""
    options.announce(f"drawing labels into copies of the videos in {folder}")
    annotated = annotate_all(
        folder,
        summary.rows,
        limits=options.limits,
        workers=options.workers,
        again=lambda row: row.key in done,
        since_s=begun_s,
        stop=options.stop,
        progress=options.annotating,
    )
    summary.not_annotated.extend(annotated.failures)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        told = f"{path} cannot be written: {error.strerror}; the journal is complete"
        raise OutputError(f"{told}. Mend it and give the same command again") from None


def label_stream(recognizer: Recognizer, paths: Iterable[str], *, workers: int | None = None) -> Iterator[VideoResult]:
    """Label the videos at paths and yield the results as they are done."""
    stages = Stages(workers or cores())
    decoded = decode_ahead(map(VideoFile.named, paths), make_plan(recognizer), stages.workers)
    for labelled in Engine(recognizer, stages).label(decoded):
        yield labelled.result


def _sort_out(
    videos: Sequence[VideoFile], places: dict[Key, Place], store: FeatureStore | None, *, retry: bool
) -> tuple["array[int]", dict[VideoFile, int]]:
    """Return the offset of each video's row, -1 where it has none, and the videos that are due with their place."""
    offsets, todo = array("q", [-1]) * len(videos), {}
    for at, video in enumerate(videos):
        place = places.pop(video.key, None)
        if place is not None and (store is None or store.has(place)):
            offsets[at] = place.offset
        if offsets[at] < 0 or (retry and place is not None and place.failed):
            todo[video] = at
    places.clear()  # what is left is of videos that are gone
    return offsets, todo
