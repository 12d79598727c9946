"""The variant of TensorRT plans: what is in the bundle after export, after a failure, and after a rebuild."""

import _thread
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest

from harec_deploy.__main__ import app
from harec_deploy.bundle import Bundle, load, save
from harec_deploy.cli import console
from harec_deploy.errors import BundleError, HarecError, MissingDependency, ProofError, UsageError
from harec_deploy.export import onnx as graphs
from harec_deploy.export import tensorrt
from harec_deploy.export.tensorrt import export_tensorrt, rebuild
from harec_deploy.spec import Variant
from tests.tensorrt.conftest import A100, H100, V100, Site

NAME = "tensorrt-fp32-sm90"
pytestmark = pytest.mark.usefixtures("quick_graphs")


def export(bundle: Path, videos: Path, **options: object) -> Variant:
    exported = export_tensorrt(bundle, [str(videos)], **{"precision": "fp32", **options})  # type: ignore[arg-type]
    return exported.spec.variants[f"tensorrt-{options.get('precision', 'fp32')}-sm90"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_adds_proved_plans_with_their_sources(bundle: Path, videos: Path, site: Site) -> None:
    export(bundle, videos, workspace_bytes=1 << 30, optimization_level=2)
    after = load(bundle)  # every file is listed with its hash
    variant = after.spec.variants[NAME]
    assert {name: file.path for name, file in variant.graphs.items()} == {
        "encoder": f"{NAME}/encoder.plan",
        "head": f"{NAME}/head.plan",
    }
    engine = variant.engine
    assert engine is not None
    assert (engine.tensorrt, engine.gpu, engine.capability) == ("11.4.0.106", H100.name, "9.0")
    assert (engine.optimization_level, engine.workspace_bytes) == (2, 1 << 30)
    assert engine.profiles["encoder"] == [(1, 1, 1), (8, 8, 8), (32, 32, 32), (128, 128, 128), (1, 32, 128)]
    for graph, source in engine.sources.items():
        assert source.path == f"{NAME}/{graph}.onnx"
        line, _, content = after.path(variant.graphs[graph]).read_bytes().partition(b"\n")
        assert content == after.path(source).read_bytes()
        shapes = [next(iter(each.values())) for each in json.loads(line)["profiles"]]
        assert [tuple(shape[0] for shape in three) for three in shapes] == engine.profiles[graph]
    (proof,) = variant.proofs
    assert (proof.runner, proof.device, proof.hardware, proof.clips) == ("tensorrt", "cuda", H100.name, 6)
    assert proof.passed
    assert variant.made_with.keys() == {"tensorrt", "torch", "onnx", "onnxscript"}
    assert set(files(bundle)) == {file.path for file in after.spec.files()} | {"bundle.json"}
    assert "onnx-fp32" in after.spec.variants


def test_types_and_lstm_go_to_the_writer(
    bundle: Path, videos: Path, site: Site, quick_graphs: list[dict[str, str]]
) -> None:
    variant = export(bundle, videos, precision="bf16")
    assert quick_graphs == [{"precision": "bf16", "lstm": "unroll"}]
    assert variant.precision == "bf16"
    assert variant.engine is not None
    assert variant.engine.lstm == "op"  # as the file is, whatever was asked for


def test_the_encoder_can_be_tuned_for_whole_clips(bundle: Path, videos: Path, site: Site) -> None:
    engine = export(bundle, videos, tune="clips").engine
    assert engine is not None
    assert [most for _, _, most in engine.profiles["encoder"]] == [20, 40, 80, 160, 160]
    assert [most for _, _, most in engine.profiles["head"]] == [1, 8, 32, 128, 128]


def test_exporting_again_replaces_that_variant_only(bundle: Path, videos: Path, site: Site) -> None:
    export(bundle, videos)
    export(bundle, videos, optimization_level=1)
    after = load(bundle)
    assert list(after.spec.variants) == ["onnx-fp32", NAME]
    assert after.spec.variants[NAME].engine.optimization_level == 1  # type: ignore[union-attr]
    assert not [path for path in bundle.iterdir() if path.name.startswith(".")]


def test_int8_is_built_of_the_quantised_variant(bundle: Path, videos: Path, site: Site) -> None:
    with pytest.raises(UsageError, match=r"int8 plans are built of the variant onnx-int8, which .* has not: export it"):
        export(bundle, videos, precision="int8")
    shutil.copytree(bundle / "onnx-fp32", bundle / "onnx-int8")
    spec = load(bundle).spec
    plain = spec.variants["onnx-fp32"]
    moved = {
        name: msgspec.structs.replace(file, path=file.path.replace("fp32", "int8"))
        for name, file in plain.graphs.items()
    }
    quantised = msgspec.structs.replace(plain, precision="int8", graphs=moved)
    save(bundle, msgspec.structs.replace(spec, variants={"onnx-fp32": plain, "onnx-int8": quantised}))
    engine = export(bundle, videos, precision="int8", lstm="unroll").engine
    assert engine is not None
    assert {name: file.sha256 for name, file in engine.sources.items()} == {n: f.sha256 for n, f in moved.items()}
    assert engine.lstm == "op"


def with_wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    plain = graphs.write_graphs

    def write(model: object, spec: object, folder: Path, **types: str) -> dict[str, Path]:
        written = plain(model, spec, folder, **types)  # type: ignore[arg-type]
        head = onnx.load(written["head"])
        for tensor in head.graph.initializer:
            if "classifier.weight" in tensor.name:
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.flip(values, 0).copy(), tensor.name))
        onnx.save(head, written["head"])
        return written

    monkeypatch.setattr(graphs, "write_graphs", write)


def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.tensorrt import fake_builder

    monkeypatch.setattr(fake_builder._machine, "result", False)


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (with_wrong_weights, ProofError, r"tensorrt-fp32-sm90 on tensorrt in fp32 on cuda:0 is not the trained model"),
        (no_plan, BundleError, r"TensorRT 11.4.0.106 builds no plan of encoder\.onnx"),
    ],
)
@pytest.mark.parametrize("before", [False, True], ids=["new", "there already"])
def test_what_fails_leaves_the_bundle_as_it_was(
    bundle: Path,
    videos: Path,
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], None],
    error: type[HarecError],
    message: str,
    before: bool,
) -> None:
    if before:
        export(bundle, videos)
    kept = files(bundle)
    break_it(monkeypatch)
    with pytest.raises(error, match=message):
        export(bundle, videos)
    assert files(bundle) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision fp8 of TensorRT plans: allowed are fp32, fp16, bf16, int8"),
        ({"lstm": "loop"}, "lstm loop of TensorRT plans: allowed are unroll, op"),
        ({"optimization_level": 6}, "optimization level 6 of TensorRT plans: allowed are 0, 1, 2, 3, 4, 5"),
        ({"tune": "speed"}, "tune speed of TensorRT plans: allowed are frames, clips"),
        ({"device": "cpu"}, "needs the GPU that is to run the plans, and there is none on device cpu"),
        ({"device": "cuda:3"}, "device cuda:3 is not here: there is cpu, cuda:0"),
    ],
)
def test_values_are_checked_before_work_begins(
    bundle: Path, videos: Path, site: Site, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(bundle, videos, **options)
    assert not site.machine.configs


def test_hardware_compatible_plans_need_ampere(bundle: Path, videos: Path, site: Site) -> None:
    site.gpu(V100)
    with pytest.raises(UsageError, match=r"from compute capability 8\.0 on; Tesla V100-SXM2-16GB has 7\.0"):
        export(bundle, videos, hardware_compatible=True)


class TestRebuild:
    def test_another_gpu_gets_a_variant_of_its_own(self, bundle: Path, videos: Path, site: Site) -> None:
        export(bundle, videos, optimization_level=4, hardware_compatible=True, workspace_bytes=1 << 28)
        site.gpu(A100)
        rebuilt = rebuild(load(bundle), NAME)
        after = load(bundle)
        assert rebuilt.spec == after.spec
        old, new = after.spec.variants[NAME], after.spec.variants["tensorrt-fp32-sm80"]
        assert old.engine is not None
        assert new.engine is not None
        assert (new.engine.gpu, new.engine.capability) == (A100.name, "8.0")
        same = ("optimization_level", "hardware_compatible", "workspace_bytes", "profiles", "lstm")
        assert [getattr(new.engine, name) for name in same] == [getattr(old.engine, name) for name in same]
        assert {f.sha256 for f in new.engine.sources.values()} == {f.sha256 for f in old.engine.sources.values()}
        (proof,) = new.proofs
        assert (proof.clips, proof.hardware, proof.passed) == (2, A100.name, True)

    def test_another_tensorrt_replaces_the_plans(self, bundle: Path, videos: Path, site: Site) -> None:
        export(bundle, videos)
        before = load(bundle)
        engine = before.spec.variants[NAME].engine
        assert engine is not None
        older = msgspec.structs.replace(
            before.spec.variants[NAME], engine=msgspec.structs.replace(engine, tensorrt="10.13.3.9")
        )
        spec = msgspec.structs.replace(before.spec, variants={**before.spec.variants, NAME: older})
        rebuild(save(bundle, spec), NAME)
        after = load(bundle).spec.variants[NAME]
        assert after.engine is not None
        assert after.engine.tensorrt == after.made_with["tensorrt"] == "11.4.0.106"
        assert list(load(bundle).spec.variants) == ["onnx-fp32", NAME]

    def test_needs_no_torch(self) -> None:
        heavy = "('torch', 'onnx', 'tensorrt')"
        code = f"import sys, harec_deploy.export.tensorrt; print([m for m in {heavy} if m in sys.modules])"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out == "[]\n"

    def test_plans_that_give_other_labels_are_not_taken(self, bundle: Path, videos: Path, site: Site) -> None:
        export(bundle, videos)
        before = load(bundle)
        check = before.check_clips()
        assert check is not None
        kept = files(bundle)

        class Wrong(Bundle):
            def check_clips(self) -> object:  # type: ignore[override]
                return check[0], check[1][:, ::-1].copy()

        with pytest.raises(ProofError, match="flipped: check clip 1"):
            rebuild(Wrong(before.folder, before.spec), NAME)
        assert files(bundle) == kept

    def test_refusals(self, bundle: Path, videos: Path, site: Site) -> None:
        export(bundle, videos)
        whole = load(bundle)
        with pytest.raises(UsageError, match=f"onnx-fp32 is no variant of TensorRT plans; .* has {NAME}"):
            rebuild(whole, "onnx-fp32")
        unchecked = save(bundle, msgspec.structs.replace(whole.spec, check=None))
        with pytest.raises(BundleError, match="has no check clips to prove plans on"):
            rebuild(unchecked, NAME)


class TestBundle:
    def damaged(self, bundle: Path, videos: Path, change: Callable[[dict], None]) -> str:
        export(bundle, videos)
        path = bundle / "bundle.json"
        spec = json.loads(path.read_text())
        change(spec["variants"][NAME]["engine"])
        path.write_text(json.dumps(spec))
        with pytest.raises(BundleError) as caught:
            load(bundle)
        return str(caught.value)

    def test_a_source_that_was_changed_is_refused(self, bundle: Path, videos: Path, site: Site) -> None:
        message = self.damaged(bundle, videos, lambda engine: engine["sources"]["head"].update(sha256="0" * 64))
        assert "was changed: its SHA-256" in message

    def test_a_source_that_is_no_onnx_is_refused(self, bundle: Path, videos: Path, site: Site) -> None:
        (bundle / "text").write_text("no graph")
        digest = hashlib.sha256(b"no graph").hexdigest()
        message = self.damaged(
            bundle, videos, lambda engine: engine["sources"].update(head={"path": "text", "size": 8, "sha256": digest})
        )
        assert "is no ONNX file" in message

    def test_every_plan_has_its_source(self, bundle: Path, videos: Path, site: Site) -> None:
        message = self.damaged(bundle, videos, lambda engine: engine["sources"].pop("head"))
        assert "has not an ONNX source and profiles for each of its plans" in message


def command(*arguments: str) -> int:
    """Return the exit status of a command line."""
    with pytest.raises(SystemExit) as caught:
        console.run_app(app, list(arguments))
    return int(caught.value.code or 0)


class TestCommand:
    def test_options_reach_the_export(
        self, bundle: Path, videos: Path, site: Site, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = "--tensorrt --precision fp32 --workspace-gib 0.5 --optimization-level 4 --hardware-compatible"
        more = "--version-compatible --lstm op --max-clips 3 --device cuda:0"
        assert command("export", str(bundle), "--clips", str(videos), *options.split(), *more.split()) == 0
        variant = load(bundle).spec.variants[NAME]
        assert variant.engine is not None
        assert variant.engine.workspace_bytes == 1 << 29
        assert (variant.engine.optimization_level, variant.proofs[0].clips) == (4, 3)
        assert variant.engine.hardware_compatible
        assert variant.engine.version_compatible
        told = capsys.readouterr().err
        assert "building encoder.plan with TensorRT 11.4.0.106 for NVIDIA H100 80GB HBM3" in told
        assert f"{NAME} on tensorrt in fp32: 100.0% of 3 clips keep their label" in told

    def test_ctrl_c_exits_130_and_leaves_nothing(self, bundle: Path, videos: Path, site: Site) -> None:
        kept = files(bundle)
        site.machine.holds = True
        told = tensorrt.TimingCache.read

        def interrupt(cache: object) -> bytes:
            _thread.interrupt_main()  # what the interpreter makes of Ctrl-C
            return told(cache)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensorrt.TimingCache, "read", interrupt)
            assert command("export", str(bundle), "--clips", str(videos), "--tensorrt") == 130
        assert files(bundle) == kept

    def test_without_the_package_it_says_what_to_install(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)  # as where it is not installed
        monkeypatch.delitem(sys.modules, "harec_deploy.export.plan", raising=False)
        assert command("export", str(bundle), "--tensorrt") == 1
        assert capsys.readouterr().err.splitlines() == [
            "error [missing_dependency]: harec-deploy export --tensorrt needs the package tensorrt: "
            "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13"
        ]

    def test_without_a_gpu_it_is_one_line(self, bundle: Path, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        site.gpu()
        assert command("export", str(bundle), "--tensorrt") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "needs the GPU that is to run the plans, and there is none on device auto" in line


def test_a_tensorrt_that_cannot_be_loaded_is_one_line(bundle: Path, site: Site, tmp_path: Path) -> None:
    class Broken(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise ImportError("libnvinfer.so.11: cannot open shared object file: No such file or directory")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorrt", Broken("tensorrt"))
        with pytest.raises(
            HarecError, match=r"is installed and cannot be loaded: libnvinfer\.so\.11: .*pip install"
        ) as caught:
            export_tensorrt(bundle, precision="fp32")
    assert not isinstance(caught.value, MissingDependency)
