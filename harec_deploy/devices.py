"""The processors that a recogniser can run on, found without importing any framework."""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from harec_deploy.errors import UsageError

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A GPU as the CUDA driver names it.

    capability: compute capability, (9, 0) for Hopper. driver: the CUDA version that the driver serves, (13, 0).
    """

    index: int
    name: str
    capability: tuple[int, int]
    memory_bytes: int
    driver: tuple[int, int]

    def __str__(self) -> str:
        return f"cuda:{self.index}"


@cache
def cuda_devices() -> tuple[CudaDevice, ...]:
    """Return every GPU that the CUDA driver shows this process; none where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, version = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    driver.cuDriverGetVersion(ctypes.byref(version))
    served = (version.value // 1000, version.value % 1000 // 10)
    return tuple(_cuda_device(driver, index, served) for index in range(count.value))


def _cuda_device(driver: ctypes.CDLL, index: int, served: tuple[int, int]) -> CudaDevice:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return CudaDevice(index, name.value.decode("utf-8", "replace"), (major.value, minor.value), memory.value, served)


def cuda_device(device: str) -> CudaDevice:
    """Return the GPU called "cuda:N". Raises UsageError where there is none of that number."""
    wanted = resolve(device)[0]
    return next(each for each in cuda_devices() if str(each) == wanted)


def resolve(device: str) -> tuple[str, ...]:
    """Return the devices that a name stands for: "cpu", "cuda:N", or "auto": the first GPU, then the CPU.

    "cuda:all" is every GPU, "cuda:0,cuda:2" a list; "cpu" may stand in one more than once.

    Raises:
        UsageError: no such device, none of that number here, or a GPU twice in a list.
    """
    gpus = tuple(map(str, cuda_devices()))
    if device == "auto":
        return (*gpus[:1], "cpu")
    if "," in device:
        return _listed(device)
    if device == "cpu":
        return ("cpu",)
    if device == "cuda:all" and gpus:
        return gpus
    wanted = "cuda:0" if device == "cuda" else device
    if wanted in gpus:
        return (wanted,)
    there = ", ".join(("cpu", *gpus))
    allowed = "auto, cpu, cuda:N, cuda:all and lists such as cuda:0,cuda:2"
    raise UsageError(f"device {device} is not here: there is {there}; allowed are {allowed}")


def _listed(devices: str) -> tuple[str, ...]:
    names = [name.strip() for name in devices.split(",")]
    if "auto" in names or not all(names):
        raise UsageError(f"device {devices}: a list names each device, such as cuda:0,cuda:2 or cpu,cpu")
    found = tuple(device for name in names for device in resolve(name))
    if twice := sorted({device for device in found if device != "cpu" and found.count(device) > 1}):
        raise UsageError(f"device {devices}: {', '.join(twice)} is in it twice; name each GPU once")
    return found


def engine_devices(device: str) -> tuple[str, ...]:
    """Return the devices that work side by side when ``device`` is asked for; "auto" is one, chosen when it is loaded.

    Raises:
        UsageError: as ``resolve`` does.
    """
    return ("auto",) if device == "auto" else resolve(device)


def core_shares(count: int) -> list[list[int]]:
    """Return the cores that this process may use in ``count`` shares of neighbours, by NUMA node where that comes out.

    Each share has at least one core, so of few cores some are in several shares.
    """
    cores = sorted(os.sched_getaffinity(0), key=lambda core: (_numa_nodes().get(core, 0), core))
    ends = [place * len(cores) // count for place in range(count + 1)]
    return [cores[a:b] or [cores[a]] for a, b in pairwise(ends)]


@cache
def _numa_nodes() -> dict[int, int]:
    """Return the NUMA node of each core; nothing where the system does not tell."""
    nodes = {}
    for path in Path("/sys/devices/system/node").glob("node[0-9]*/cpulist"):
        for span in filter(None, path.read_text().strip().split(",")):
            first, _, last = span.partition("-")
            nodes.update(dict.fromkeys(range(int(first), int(last or first) + 1), int(path.parent.name[4:])))
    return nodes
