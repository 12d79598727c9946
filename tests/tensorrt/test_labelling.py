"""TensorRT plans in a recogniser and in a labelling run: chosen, refused, passed over, built again."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

import harec_deploy
from harec_deploy import devices
from harec_deploy.__main__ import app
from harec_deploy.bundle import Bundle, load, save
from harec_deploy.errors import BundleError, MissingDependency, PlanRefused, UsageError
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.runners import executions, get, installed
from tests.attacks.tiny import FRAMES, SIDE
from tests.tensorrt import fake_cuda, fake_runtime
from tests.tensorrt.fake_cuda import Machine
from tests.tensorrt.plans import VARIANT, engine_bundle

OLD = {"tensorrt": "10.13.3.9"}


def clips(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)


def built_again(
    bundle: Bundle, variant: str, device: str, progress: Callable[[str], None] = lambda text: None
) -> Bundle:
    """Build the plans of a variant again, as the fake can: say that they are of what is here."""
    assert device == "cuda:0"
    progress("building")
    described = bundle.spec.variants[variant]
    assert described.engine is not None
    engine = msgspec.structs.replace(described.engine, tensorrt=fake_runtime.__version__)
    renewed = {**bundle.spec.variants, variant: msgspec.structs.replace(described, engine=engine)}
    return save(bundle.folder, msgspec.structs.replace(bundle.spec, variants=renewed))


class TestRecognizer:
    def test_both_graphs_give_the_probabilities_of_onnx(self, machine: Machine, tmp_path: Path) -> None:
        engine_bundle(tmp_path / "bundle", onnx_too=True)
        wanted = harec_deploy.load(tmp_path / "bundle", runner="onnx", device="cpu").predict(clips(9))
        recognizer = harec_deploy.load(tmp_path / "bundle", runner="tensorrt")
        assert str(recognizer.execution) == f"{VARIANT} on tensorrt in fp32 on cuda:0"
        assert recognizer.reason == "the only way that was asked for and is proved"
        np.testing.assert_allclose(recognizer.predict(clips(9)), wanted, atol=1e-6)

    def test_what_is_to_be_known_is_in_the_reason(self, machine: Machine, tmp_path: Path) -> None:
        machine.capture = False
        engine_bundle(tmp_path / "bundle")
        reason = harec_deploy.load(tmp_path / "bundle", device="cuda:0").reason
        assert reason.startswith("the only way that was asked for and is proved; encoder without CUDA graphs: CUDA_")
        assert reason.count("without CUDA graphs") == 2

    @pytest.mark.parametrize("arguments", [{"runner": "tensorrt"}, {"device": "cuda:0"}, {}], ids=str)
    def test_plans_that_do_not_fit_are_refused_where_there_is_nothing_else(
        self, machine: Machine, tmp_path: Path, arguments: dict[str, str]
    ) -> None:
        engine_bundle(tmp_path / "bundle", **OLD)
        with pytest.raises(PlanRefused, match=r"by TensorRT 10\.13\.3\.9, here is 11\.4\.0\.106: build it again with"):
            harec_deploy.load(tmp_path / "bundle", **arguments)

    def test_where_the_cpu_can_do_it_they_are_passed_over_in_words(self, machine: Machine, tmp_path: Path) -> None:
        engine_bundle(tmp_path / "bundle", onnx_too=True, **OLD)
        recognizer = harec_deploy.load(tmp_path / "bundle")
        assert recognizer.execution.runner.device == "cpu"
        assert f"; not used: {VARIANT} was built by TensorRT 10.13.3.9, here is 11.4.0.106" in recognizer.reason
        with pytest.raises(PlanRefused):
            harec_deploy.load(tmp_path / "bundle", runner="tensorrt")

    def test_plans_for_other_machines_are_no_news_beside_one_for_this(self, machine: Machine, tmp_path: Path) -> None:
        bundle = engine_bundle(tmp_path / "bundle")
        engine = bundle.spec.variants[VARIANT].engine
        assert engine is not None
        other = msgspec.structs.replace(
            bundle.spec.variants[VARIANT], engine=msgspec.structs.replace(engine, capability="8.0", gpu="A100")
        )
        variants = {"tensorrt-fp32-sm80": other, **bundle.spec.variants}
        save(bundle.folder, msgspec.structs.replace(bundle.spec, variants=variants))
        recognizer = harec_deploy.load(bundle.folder)
        assert recognizer.execution.variant == VARIANT
        assert (recognizer.refused, "not used" in recognizer.reason) == ([], False)

    def test_a_gpu_alone_does_not_make_others_run_plans(self, machine: Machine, tmp_path: Path) -> None:
        bundle = engine_bundle(tmp_path / "bundle")
        assert [way.runner.name for way in executions(bundle.spec)] == ["tensorrt"]
        with pytest.raises(UsageError, match="there is nothing"):
            executions(bundle.spec, device="cpu")

    def test_without_the_package_its_line_is_said(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
        with pytest.raises(MissingDependency, match="runner tensorrt needs the package tensorrt: pip install "):
            get("tensorrt", "cuda:0")
        assert "tensorrt" not in [runner.name for runner in installed("cuda:0")]

    def test_without_a_gpu_it_is_not_considered(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(devices, "cuda_devices", lambda: ())
        with pytest.raises(UsageError, match="device cuda:0 is not here: there is cpu"):
            get("tensorrt", "cuda:0")


class TestLabel:
    def options(self, folder: Path, said: list[str], **options: object) -> Options:
        return Options(out=folder / "labels.jsonl", workers=2, announce=said.append, **options)  # type: ignore[arg-type]

    def test_a_run_on_plans_labels_as_onnx_does(self, machine: Machine, tmp_path: Path, videos: Path) -> None:
        engine_bundle(tmp_path / "bundle", onnx_too=True)
        rows: dict[str, list[tuple[str, str | None]]] = {}
        for runner in ("onnx", "tensorrt"):
            said: list[str] = []
            folder = tmp_path / runner
            folder.mkdir()
            summary = label(tmp_path / "bundle", [str(videos)], self.options(folder, said, runner=runner))
            assert summary.statuses == {"ok": 6}
            assert f"on {runner} in fp32" in said[0]
            rows[runner] = sorted((row.path, row.label) for row in summary.rows)
        assert rows["tensorrt"] == rows["onnx"]
        assert machine.launches > 0
        header = json.loads((tmp_path / "tensorrt/labels.jsonl").read_text().splitlines()[0])
        assert VARIANT in json.dumps(header)

    @pytest.mark.parametrize("runner", ["tensorrt", "auto"])
    @pytest.mark.parametrize("onnx_too", [False, True])
    def test_rebuild_builds_again_what_does_not_fit_and_goes_on(
        self, machine: Machine, tmp_path: Path, videos: Path, runner: str, onnx_too: bool
    ) -> None:
        engine_bundle(tmp_path / "bundle", onnx_too=onnx_too, **OLD)
        said: list[str] = []
        options = self.options(tmp_path, said, runner=runner, rebuild=built_again)
        summary = label(tmp_path / "bundle", [str(videos)], options)
        assert summary.statuses == {"ok": 6}
        assert said[0] == (
            f"building TensorRT plans again: {VARIANT} was built by TensorRT 10.13.3.9, here is 11.4.0.106"
        )
        assert "not used" not in said[1]
        assert load(tmp_path / "bundle").spec.variants[VARIANT].engine.tensorrt == "11.4.0.106"  # type: ignore[union-attr]

    def test_rebuild_leaves_plans_that_fit_alone(self, machine: Machine, tmp_path: Path, videos: Path) -> None:
        engine_bundle(tmp_path / "bundle")
        options = self.options(tmp_path, [], rebuild=lambda *_: pytest.fail("it was built again"))
        assert label(tmp_path / "bundle", [str(videos)], options).statuses == {"ok": 6}

    def test_without_rebuild_a_run_ends_before_it_begins(self, machine: Machine, tmp_path: Path, videos: Path) -> None:
        engine_bundle(tmp_path / "bundle", **OLD)
        with pytest.raises(PlanRefused):
            label(tmp_path / "bundle", [str(videos)], self.options(tmp_path, []))
        assert not (tmp_path / "labels.jsonl").exists()

    def test_what_is_still_refused_after_rebuilding_is_an_error(
        self, machine: Machine, tmp_path: Path, videos: Path
    ) -> None:
        engine_bundle(tmp_path / "bundle", **OLD)
        built: list[str] = []
        options = self.options(tmp_path, [], rebuild=lambda bundle, variant, device: built.append(variant))
        with pytest.raises(PlanRefused):
            label(tmp_path / "bundle", [str(videos)], options)
        assert built == [VARIANT]

    def test_the_option_calls_the_exporter(
        self, machine: Machine, tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exporter = types.ModuleType("harec_deploy.export.tensorrt")
        exporter.rebuild = built_again  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "harec_deploy.export.tensorrt", exporter)
        engine_bundle(tmp_path / "bundle", **OLD)
        command = ["label", str(videos), "-b", str(tmp_path / "bundle"), "-o", str(tmp_path / "o.jsonl")]
        refused = CliRunner().invoke(app, [*command, "--runner", "tensorrt"])
        assert isinstance(refused.exception, PlanRefused)
        done = CliRunner().invoke(app, [*command, "--runner", "tensorrt", "--rebuild"])
        assert (done.exit_code, done.exception) == (0, None)
        assert "building" in done.stderr.splitlines()
        assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1 + 6

    def test_a_failing_gpu_ends_the_run_in_one_line(
        self, machine: Machine, tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine_bundle(tmp_path / "bundle", plans={"head": b"no plan"})
        with pytest.raises(BundleError, match="Magic tag does not match"):
            label(tmp_path / "bundle", [str(videos)], self.options(tmp_path, []))
        assert fake_cuda.MACHINE is machine
