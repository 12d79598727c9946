"""OpenVINO in a process that is sent signals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harec_deploy.bundle import load
from harec_deploy.errors import BundleError
from harec_deploy.runners.openvino import OpenVINORunner

SCRIPT = """
import signal
from harec_deploy.runners.openvino import OpenVINORunner

def capable():
    runner = OpenVINORunner()
    runner._type("bf16")  # loads the CPU plugin
    return runner

first, second = capable(), capable()
del first, second  # in the order in which they came
signal.signal(signal.SIGINT, lambda *_: print("handled"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_handled_after_two_runners_have_gone() -> None:
    """As when ``auto`` tries several ways and keeps one, and then Ctrl-C comes."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


def test_a_batch_that_is_refused_costs_no_other(exported: Path) -> None:
    """A request that was taken and not started would be waited for at the next call, for ever."""
    bundle = load(exported)
    head = OpenVINORunner().load(bundle, "onnx-fp32", precision="fp32")["head"]
    good = np.ones((2, bundle.spec.sampling.frames, bundle.spec.feature_dim), np.float32)
    wanted = head(good)
    for _ in range(3):
        with pytest.raises(BundleError, match="OpenVINO cannot run the graph"):
            head(good[..., :3])
        np.testing.assert_array_equal(head(good), wanted)
