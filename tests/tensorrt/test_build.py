"""One ONNX file to one plan: what reaches TensorRT, and what its refusals become."""

import _thread
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from harec_deploy.errors import BundleError, HarecError, MissingDependency
from harec_deploy.export.timing import TimingCache
from harec_deploy.spec import EngineSpec
from tests.tensorrt.conftest import A100, H100, Site

PROFILES = [(1, 1, 1), (8, 8, 8), (1, 4, 8)]
Build = Callable[..., bytes]


def write(
    path: Path, *nodes: onnx.NodeProto, kind: int = TensorProto.FLOAT, opset: int = 20, batch: object = "n"
) -> Path:
    """Write a graph of nodes that take x (batch, 4) and give y."""
    zero = onnx.numpy_helper.from_array(np.uint8(3), "three")
    one = onnx.numpy_helper.from_array(np.float32(1), "one")
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b"])],
        [zero, one],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString())
    return path


def relu(path: Path, **options: object) -> Path:
    return write(path, helper.make_node("Relu", ["x"], ["y"], name="act"), **options)  # type: ignore[arg-type]


@pytest.fixture
def build(site: Site) -> Build:
    from harec_deploy.export import plan

    def run(path: Path, profiles: object = PROFILES, say: Callable[[str], None] = print, **engine: object) -> bytes:
        bar = engine.pop("bar", lambda share, note: None)
        described = EngineSpec(tensorrt="", gpu="", capability="", profiles={}, sources={}, **engine)  # type: ignore[arg-type]
        timing = TimingCache(H100, plan.VERSION, say)
        return plan.build(path, profiles, described, device=H100, timing=timing, bar=bar)  # type: ignore[arg-type]

    return run


def test_a_plan_holds_the_file_and_the_profiles(build: Build, tmp_path: Path) -> None:
    path = relu(tmp_path / "g.onnx")
    line, _, content = build(path).partition(b"\n")
    assert content == path.read_bytes()
    assert json.loads(line)["profiles"] == [
        {"x": [[1, 4], [1, 4], [1, 4]]},
        {"x": [[8, 4], [8, 4], [8, 4]]},
        {"x": [[1, 4], [4, 4], [8, 4]]},
    ]


def test_settings_reach_the_config(build: Build, site: Site, tmp_path: Path) -> None:
    path = relu(tmp_path / "g.onnx")
    build(path)
    settings = {"optimization_level": 5, "workspace_bytes": 1 << 30, "hardware_compatible": True}
    build(path, **settings, version_compatible=True)
    plain, full = (
        (
            config.builder_optimization_level,
            {pool.name: size for pool, size in config._pools.items()},
            config.hardware_compatibility_level.name,
            {flag.name for flag in config._flags},  # TF32, which is on by default, is off
            config.profiling_verbosity.name,
        )
        for config in site.machine.configs
    )
    assert plain == (3, {}, "NONE", set(), "DETAILED")
    assert full == (5, {"WORKSPACE": 1 << 30}, "AMPERE_PLUS", {"VERSION_COMPATIBLE"}, "DETAILED")


def cast_late(path: Path) -> Path:
    late = [helper.make_node("Transpose", ["x"], ["t"], name="turn"), helper.make_node("Cast", ["t"], ["y"], to=1)]
    return write(path, *late, kind=TensorProto.UINT8)


def zero_point(path: Path) -> Path:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "three"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "one", "three"], ["y"], name="restore"),
    ]
    return write(path, *nodes)


def garbage(path: Path) -> Path:
    path.write_bytes(b"\xff" * 40)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "uint8 inside": (
        cast_late,
        r"node 'turn' \(Transpose\): UINT8 is only a network's input or output \[UNSUPPORTED_NODE_DATATYPE\]",
    ),
    "every fault": (
        zero_point,
        r"node 'quantise' \(QuantizeLinear\): the zero point must be 0 .*; .*node 'restore' \(DequantizeLinear\)",
    ),
    "opset": (lambda path: relu(path, opset=8), r"cannot read g\.onnx: opset 8 is not supported"),
    "no onnx": (garbage, r"cannot read g\.onnx: Failed to parse the ONNX model .*\[MODEL_DESERIALIZE_FAILED\]"),
    "fixed batch": (lambda path: relu(path, batch=2), r"must have one input of any batch first, got 1, \(2, 4\)"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_parser_refuses_is_one_line(
    build: Build, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        build(make(tmp_path / "g.onnx"))
    assert "\n" not in str(caught.value)


def test_no_plan_is_an_error_in_tensorrts_words(build: Build, site: Site, tmp_path: Path) -> None:
    site.machine.result = False
    with pytest.raises(
        BundleError, match=r"builds no plan of g\.onnx on NVIDIA H100.*any implementation for node conv1\.$"
    ):
        build(relu(tmp_path / "g.onnx"))
    assert not list(site.cache.glob("*"))  # what was not built has measured nothing


def test_batches_that_make_no_sense_are_refused(build: Build, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"refuses batches of \(8, 4, 1\) for g\.onnx"):
        build(relu(tmp_path / "g.onnx"), [(8, 4, 1)])


def test_tensorrt_that_does_not_start_says_why(build: Build, site: Site, tmp_path: Path) -> None:
    site.machine.starts = False
    with pytest.raises(
        HarecError, match=r"does not start on cuda:0 \(NVIDIA H100 80GB HBM3\): CUDA initialization failure"
    ):
        build(relu(tmp_path / "g.onnx"))


def test_another_gpu_than_the_first_needs_cuda_core(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from harec_deploy.export import plan

    second = replace(H100, index=1)
    monkeypatch.setitem(sys.modules, "cuda", None)  # as where it is not installed
    engine = EngineSpec(tensorrt="", gpu="", capability="", profiles={}, sources={})
    with pytest.raises(MissingDependency, match=r"building on cuda:1 needs .*pip install 'harec-deploy\[tensorrt\]'"):
        plan.build(relu(tmp_path / "g"), PROFILES, engine, device=second, timing=TimingCache(second, "11.4", print))


def test_ctrl_c_ends_the_build(build: Build, site: Site, tmp_path: Path) -> None:
    site.machine.holds = True  # it ends by being told to, or after a minute with a plan

    pressed: list[int] = []

    def bar(share: float, note: str) -> None:
        if not pressed:
            pressed.append(1)
            _thread.interrupt_main()  # what the interpreter makes of Ctrl-C

    with pytest.raises(KeyboardInterrupt):
        build(relu(tmp_path / "g.onnx"), bar=bar)
    assert not list(site.cache.glob("*"))


def test_the_bar_sees_phases_inside_phases(build: Build, tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    build(relu(tmp_path / "g.onnx"), bar=lambda share, note: seen.append((share, note)))
    inside = [(step / 8, "Tactic Selection") for step in range(5)]
    assert seen == [(0, "Building Engine"), *inside, (0.5, "Building Engine"), (1, "Building Engine")]


class TestTimingCache:
    def test_is_kept_between_builds(self, build: Build, site: Site, tmp_path: Path) -> None:
        build(relu(tmp_path / "g.onnx"))
        build(relu(tmp_path / "g.onnx"))
        (kept,) = site.cache.iterdir()
        assert kept.name == "11.4.0.106-NVIDIA-H100-80GB-HBM3-sm90.timing"
        first, second = site.machine.configs
        assert first._began_with == b""
        assert second._began_with.startswith(b"11.4.0.106|NVIDIA H100 80GB HBM3|")

    @pytest.mark.parametrize(
        "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:40] + b"!" + data[41:]]
    )
    def test_damage_is_told_and_does_not_reach_tensorrt(
        self, build: Build, site: Site, tmp_path: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        build(relu(tmp_path / "g.onnx"))
        (kept,) = site.cache.iterdir()
        kept.write_bytes(damage(kept.read_bytes()))
        told: list[str] = []
        build(relu(tmp_path / "g.onnx"), say=told.append)
        assert told == [f"the timing cache {kept} is damaged: not used, so this build takes longer"]
        assert site.machine.configs[-1]._began_with == b""
        build(relu(tmp_path / "g.onnx"), say=told.append)
        assert len(told) == 1  # the last build has put a good one in its place

    def test_one_of_another_machine_is_told_and_replaced(self, build: Build, site: Site, tmp_path: Path) -> None:
        TimingCache(H100, "11.4.0.106", print).write(b"10.13.3.9|NVIDIA H100 80GB HBM3|1234")
        told: list[str] = []
        build(relu(tmp_path / "g.onnx"), say=told.append)
        assert [text.partition(".timing ")[2] for text in told] == [
            "is of another TensorRT or GPU: not used, so this build takes longer"
        ]
        assert TimingCache(H100, "11.4.0.106", print).read().startswith(b"11.4.0.106|")

    def test_machines_do_not_share_one(self, site: Site) -> None:
        paths = {
            TimingCache(gpu, version, print).path for gpu in (H100, A100) for version in ("10.13.3.9", "11.4.0.106")
        }
        assert len(paths) == 4

    def test_a_folder_that_cannot_be_written_costs_nothing_else(self, build: Build, site: Site, tmp_path: Path) -> None:
        site.cache.parent.mkdir(parents=True)
        site.cache.write_text("a file where the folder should be")
        told: list[str] = []
        assert build(relu(tmp_path / "g.onnx"), say=told.append)
        assert ["cannot be read" in told[0], "cannot be written" in told[1], len(told)] == [True, True, 2]

    def test_a_relative_cache_home_counts_as_none(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert TimingCache(H100, "11.4", print).path.is_relative_to(tmp_path / ".cache/harec-deploy")
