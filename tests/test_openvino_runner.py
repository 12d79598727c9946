"""OpenVINO in a process that is sent signals."""

import subprocess
import sys

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
