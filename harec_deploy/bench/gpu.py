"""How much of a call's time is the GPU's: its own clock beside the one on the wall, where there is a GPU."""

import statistics
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harec_deploy.recognizer import Recognizer

CALLS = 20
HOST_BOUND = 1.5  # times what the GPU works: a call that takes longer waits for the host


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Medians of the same calls, in seconds.

    wall_s: from pixels in host memory to probabilities there. gpu_s: of these, what the GPU is at the graphs' work.
    """

    wall_s: float
    gpu_s: float

    @property
    def host_bound(self) -> bool:
        """The GPU is idle for much of a call: a faster one would bring little."""
        return self.wall_s > HOST_BOUND * self.gpu_s

    def told(self) -> str:
        """Say by how much the host bounds a call."""
        return f"bound by the host: a call takes {self.wall_s * 1e3:.3g} ms, the GPU works {self.gpu_s * 1e3:.3g} of it"


def gpu_times(recognizer: Recognizer, clips: NDArray[np.uint8], calls: int = CALLS) -> GpuTimes | None:
    """Return the times of ``predict`` on clips uint8 (B, T, H, W, 3), which was called before, or None.

    None: it runs on a CPU, or by a runtime that lets nobody put events on its stream, as ONNX Runtime does.
    """
    if not recognizer.clocks:
        return None
    wall, gpu = list[float](), list[float]()
    for _ in range(calls):
        for clock in recognizer.clocks:
            clock.start()
        begun = time.perf_counter()
        recognizer.predict(clips)
        wall.append(time.perf_counter() - begun)
        gpu.append(sum(clock.stop() for clock in recognizer.clocks))
    return GpuTimes(statistics.median(wall), statistics.median(gpu))
