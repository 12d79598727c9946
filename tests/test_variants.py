"""Variants of several precisions in one bundle: each proved, none in the way of the others."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import harec_deploy
import harec_deploy.export
from harec_deploy.bundle import Bundle, load
from harec_deploy.errors import ProofError, UsageError
from harec_deploy.export import export
from harec_deploy.export.verify import prove, read_clips, reference_logits
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import RUNNERS, Execution, executions, get
from tests.test_bundle import edit, rehash
from tests.test_cli import run
from tests.test_export import with_a_changed_weight


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, exported: Path, videos: Path) -> Path:
    """A bundle with three variants, the last two proved on other clips than the first. Do not write to it."""
    folder = tmp_path_factory.mktemp("several") / "bundle"
    shutil.copytree(exported, folder)
    export(folder, [str(videos / "jump")], precision="fp16", lstm="unroll")
    export(folder, [str(videos / "swim")], precision="bf16")
    return folder


def test_they_lie_side_by_side_and_each_is_proved(several: Path, exported: Path) -> None:
    before, spec = load(exported).spec, load(several).spec
    assert list(spec.variants) == ["onnx-fp32", "onnx-fp16", "onnx-bf16"]
    assert spec.variants["onnx-fp32"] == before.variants["onnx-fp32"]
    assert spec.check == before.check
    tried = {name: {(p.runner, p.precision) for p in variant.proofs} for name, variant in spec.variants.items()}
    assert tried["onnx-fp16"] == {("openvino", "fp16"), ("onnx", "fp16")}
    assert tried["onnx-bf16"] == {("openvino", "bf16")}
    for name in ("onnx-fp16", "onnx-bf16"):
        variant = spec.variants[name]
        assert variant.precision == name.removeprefix("onnx-")
        for proof in variant.proofs:
            assert proof.passed
            assert proof.clips == 2
            assert 0 < proof.max_abs_dp < 0.05


def test_every_way_loads_and_keeps_the_labels(several: Path, videos: Path) -> None:
    bundle = load(several)
    # One of the others is so near to a tie that bf16 may tip it.
    real = read_clips(bundle.spec, [str(videos / "jump"), str(videos / "swim")], limit=4)
    logits = reference_logits(from_bundle(bundle), real)
    ways = executions(bundle.spec)
    assert {way.variant for way in ways} == set(bundle.spec.variants)
    for way in ways:
        # Loading tests each on the check clips, which came with the first variant.
        assert prove(Recognizer(bundle, way), real, logits).top1_agreement == 1.0, str(way)


def test_auto_measures_all_and_names_the_variants(several: Path) -> None:
    recognizer = harec_deploy.load(several)
    ways = {f"{way.runner.name} {way.precision} ({way.variant})" for way in executions(load(several).spec)}
    measured = recognizer.reason.removeprefix("the fastest here, in clips/s: ").split(", ")
    assert {text.rpartition(" ")[0] for text in measured} == ways
    speeds = [float(text.rpartition(" ")[2]) for text in measured]
    assert speeds == sorted(speeds, reverse=True)
    way = recognizer.execution
    assert measured[0].startswith(f"{way.runner.name} {way.precision} ({way.variant}) ")


def test_a_precision_asked_for_takes_graphs_of_that_precision(several: Path) -> None:
    spec = load(several).spec
    assert {way.variant for way in executions(spec, precision="fp32")} == {"onnx-fp32"}
    assert {way.variant for way in executions(spec, precision="fp16")} == {"onnx-fp16"}
    with pytest.raises(UsageError, match="with runner onnx in precision bf16"):
        executions(spec, runner="onnx", precision="bf16")


def test_exporting_again_replaces_that_variant_only(several: Path, videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(several, tmp_path / "bundle")
    before = load(folder).spec
    export(folder, [str(videos)], precision="fp16", lstm="op")
    after = load(folder).spec
    assert {proof.clips for proof in after.variants["onnx-fp16"].proofs} == {6}
    assert after.variants["onnx-fp16"].graphs != before.variants["onnx-fp16"].graphs
    for name in ("onnx-fp32", "onnx-bf16"):
        assert after.variants[name] == before.variants[name]
    assert after.check == before.check


def test_a_failed_proof_leaves_the_others_and_nothing_new(
    bundle: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    monkeypatch.setattr("harec_deploy.export.onnx.write_graphs", with_a_changed_weight(500.0))
    with pytest.raises(ProofError, match="onnx-fp16 on openvino in fp16 is not the trained model"):
        export(bundle, [str(videos)], precision="fp16")
    assert (bundle / "bundle.json").read_bytes() == before
    assert not (bundle / "onnx-fp16").exists()
    load(bundle)


def test_without_a_runner_that_executes_it_there_is_no_variant(
    bundle: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle / "bundle.json").read_bytes()
    monkeypatch.delitem(RUNNERS, "openvino")
    told: list[str] = []
    with pytest.raises(ProofError, match="onnx-bf16 cannot be proved on this machine: onnx cannot execute bf16 graphs"):
        export(bundle, [str(videos / "jump")], precision="bf16", progress=told.append)
    assert "onnx cannot execute bf16 graphs on cpu: left out" in told
    assert (bundle / "bundle.json").read_bytes() == before
    assert not (bundle / "onnx-bf16").exists()


def test_the_difference_counts_on_the_check_clips_too(exported: Path, videos: Path) -> None:
    bundle = load(exported)
    check = bundle.check_clips()
    assert check is not None
    clips = read_clips(bundle.spec, [str(videos / "swim")], limit=1)
    logits = reference_logits(from_bundle(bundle), clips)
    unchecked = Bundle(bundle.folder, msgspec.structs.replace(bundle.spec, check=None))
    recognizer = Recognizer(unchecked, Execution("onnx-fp32", get("openvino"), "fp32"))
    assert prove(recognizer, clips, logits, check).passed
    wrong = (check[0], check[1] + np.array([1.0, 0.0, 0.0], np.float32))
    proof = prove(recognizer, clips, logits, wrong)
    assert not proof.passed
    assert proof.max_abs_dp > 1e-3
    assert proof.clips == 1


def test_check_clips_that_fit_no_more_are_written_anew(bundle: Path, videos: Path) -> None:
    clips, logits = load(bundle).check_clips() or pytest.fail("no check clips")
    np.savez(bundle / "check.npz", clips=clips[:, :3], logits=logits)
    edit(bundle, lambda spec: spec.update(check=rehash(bundle, "check.npz")))
    export(bundle, [str(videos / "jump")], precision="fp16")
    assert load(bundle).check_clips() is not None


def test_the_command(bundle: Path, videos: Path) -> None:
    clips: list[Any] = ["--clips", str(videos / "jump")]
    done = run("export", str(bundle), *clips, "--precision", "bf16", "--lstm", "unroll")
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert "onnx cannot execute bf16 graphs on cpu: left out" in told
    assert "onnx-bf16 on openvino in bf16: 100.0% of 2 clips keep their label (95 % interval 34.2% to 100.0%), " in told
    assert "onnx-fp32" not in told
    assert set(load(bundle).spec.variants) == {"onnx-fp32", "onnx-bf16"}
    for option, wrong, told in (
        ("--precision", "int4", "unknown precision 'int4'; allowed are fp32, fp16, bf16, int8"),
        ("--lstm", "loop", "unknown form of the LSTM 'loop'; allowed are op, unroll"),
    ):
        done = run("export", str(bundle), *clips, option, wrong)
        assert done.returncode == 2
        assert done.stderr == f"error [usage]: {told}\n"  # before any work
