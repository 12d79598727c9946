"""What the TensorRT runner does not take, and what it says: another machine's plans, changed and corrupt ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harec_deploy.devices import CudaDevice
from harec_deploy.errors import BundleError, DeviceError, PlanRefused
from harec_deploy.runners import get
from tests.tensorrt import fake_runtime
from tests.tensorrt.fake_cuda import Machine
from tests.tensorrt.plans import VARIANT, engine_bundle, reference
from tests.tensorrt.test_runner import frames, loaded


class TestRefusals:
    """Plans that are not for this machine, in one line with what they are of and what is here."""

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({"tensorrt": "10.13.3.9"}, "by TensorRT 10.13.3.9, here is 11.4.0.106"),
            ({"tensorrt": "12.0.0.1", "version_compatible": True}, "by TensorRT 12.0.0.1, here is 11.4.0.106"),
            (
                {"capability": "8.0", "gpu": "A100"},
                r"for compute capability 8.0 \(A100\), cuda:0 has 9.0 \(Fake H100\)",
            ),
            ({"gpu": "Fake H200"}, "for Fake H200, cuda:0 is Fake H100"),
        ],
    )
    def test_another_machines_plan(
        self, machine: Machine, tmp_path: Path, fields: dict[str, object], told: str
    ) -> None:
        with pytest.raises(
            PlanRefused, match=f"^{VARIANT} was built {told}: build it again with harec-deploy"
        ) as caught:
            loaded(tmp_path, **fields)
        assert "--rebuild, or harec-deploy export" in str(caught.value)
        assert str(caught.value).endswith(f"{tmp_path / 'bundle'} --tensorrt --precision fp32")
        assert (caught.value.variant, caught.value.device) == (VARIANT, "cuda:0")

    @pytest.mark.parametrize(
        "fields",
        [{"tensorrt": "10.13.3.9", "version_compatible": True}, {"capability": "8.0", "hardware_compatible": True}],
    )
    def test_a_compatible_plan_runs(self, machine: Machine, tmp_path: Path, fields: dict[str, object]) -> None:
        graphs, _ = loaded(tmp_path, said=fields, **fields)
        np.testing.assert_array_equal(graphs["encoder"](frames(2)), reference("encoder", frames(2)))

    def test_a_hardware_compatible_plan_still_needs_ampere(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turing = CudaDevice(0, "Fake T4", (7, 5), 1 << 40, (13, 0))
        monkeypatch.setattr("harec_deploy.devices.cuda_devices", lambda: (turing,))
        with pytest.raises(PlanRefused, match=r"capability 9.0 \(Fake H100\), cuda:0 has 7.5 \(Fake T4\)"):
            loaded(tmp_path, hardware_compatible=True)

    def test_code_in_a_plan_is_allowed_only_where_it_is_needed(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        allowed: list[bool] = []
        read = fake_runtime.Runtime.deserialize_cuda_engine

        def noted(self: Any, serialized_engine: bytes) -> Any:
            allowed.append(self.engine_host_code_allowed)
            return read(self, serialized_engine)

        monkeypatch.setattr(fake_runtime.Runtime, "deserialize_cuda_engine", noted)
        loaded(tmp_path / "plain")
        loaded(tmp_path / "compatible", version_compatible=True)
        assert allowed == [False, False, True, True]

    def test_the_model_of_the_gpu_is_noted_of_a_compatible_plan(self, machine: Machine, tmp_path: Path) -> None:
        _, runner = loaded(tmp_path, gpu="Fake H200", hardware_compatible=True)
        assert runner.notes == [
            f"{VARIANT} was tuned on Fake H200, this is Fake H100: an export here may be faster",
        ]

    def test_a_plan_that_was_changed_is_not_deserialised(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle, runner = engine_bundle(tmp_path / "bundle"), get("tensorrt", "cuda:0")
        path = tmp_path / f"bundle/{VARIANT}/encoder.plan"
        path.write_bytes(path.read_bytes() + b"more")  # after the bundle was verified
        monkeypatch.setattr(fake_runtime.Runtime, "deserialize_cuda_engine", lambda *_: pytest.fail("it was read"))
        with pytest.raises(BundleError, match=r"encoder\.plan was changed after the bundle was verified: its SHA-256"):
            runner.load(bundle, VARIANT, precision="fp32")

    def test_a_plan_that_is_gone(self, machine: Machine, tmp_path: Path) -> None:
        bundle, runner = engine_bundle(tmp_path / "bundle"), get("tensorrt", "cuda:0")
        (tmp_path / f"bundle/{VARIANT}/encoder.plan").unlink()
        with pytest.raises(BundleError, match=r"encoder\.plan cannot be read: No such file"):
            runner.load(bundle, VARIANT, precision="fp32")

    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ({"tensorrt": "11.1.0.106"}, "stdVersionRead == kSERIALIZATION_VERSION failed"),
            ({"capability": "8.6"}, "generated on an incompatible device"),
        ],
    )
    def test_what_the_bundle_hides_tensorrt_says(
        self, machine: Machine, tmp_path: Path, said: dict[str, object], words: str
    ) -> None:
        with pytest.raises(BundleError, match=rf"cannot be used: TensorRT 11.4.0.106 cannot read it: .*{words}; build"):
            loaded(tmp_path, said=said)

    def test_no_memory_for_the_weights(self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Any, serialized_engine: bytes) -> None:
            self._refuse(fake_runtime.ErrorCodeTRT.FAILED_ALLOCATION, "Requested size was 5 bytes.")

        monkeypatch.setattr(fake_runtime.Runtime, "deserialize_cuda_engine", refuse)
        with pytest.raises(BundleError, match=r"encoder\.plan cannot be used: cuda:0 has no memory for it: Requested"):
            loaded(tmp_path)

    def test_a_tensorrt_that_does_not_start(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Any, logger: object) -> None:
            raise TypeError("pybind11::init(): factory function returned nullptr")

        monkeypatch.setattr(fake_runtime.Runtime, "__init__", refuse)
        with pytest.raises(DeviceError, match=r"TensorRT 11\.4\.0\.106 does not start on this GPU"):
            loaded(tmp_path)

    @pytest.mark.parametrize(
        ("method", "answer", "told"),
        [
            ("infer_shapes", RuntimeError("no"), "tell the shape of features: it does not say why"),
            ("infer_shapes", ["frames"], "tell the shape of frames: it does not say why"),
            ("set_tensor_address", False, "use the memory for frames: it does not say why"),
            ("set_input_shape", False, "take batches of 1: it does not say why"),
            ("set_optimization_profile_async", False, "choose profile 0: it does not say why"),
        ],
    )
    def test_whatever_tensorrt_refuses_is_an_error(
        self, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, answer: Any, told: str
    ) -> None:
        def refuse(*_: object) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(fake_runtime.IExecutionContext, method, refuse)
        with pytest.raises(BundleError, match=rf"encoder\.plan cannot be used: TensorRT 11.4.0.106 cannot {told}"):
            loaded(tmp_path)

    def test_a_corrupt_plan_is_an_error_in_tensorrts_words(self, machine: Machine, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"head\.plan cannot be used: .*Magic tag does not match; build it again"):
            loaded(tmp_path, plans={"head": b"no plan"})
