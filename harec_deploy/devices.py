"""The processors that a recogniser can run on, found without importing any framework."""

import ctypes
from dataclasses import dataclass
from functools import cache

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
    """Return the devices that a name stands for: "cpu", "cuda:N", "cuda:all", or "auto": the first GPU, then the CPU.

    Raises:
        UsageError: no such device, or none of that number here.
    """
    gpus = tuple(map(str, cuda_devices()))
    if device == "auto":
        return (*gpus[:1], "cpu")
    if device == "cpu":
        return ("cpu",)
    if device == "cuda:all" and gpus:
        return gpus
    wanted = "cuda:0" if device == "cuda" else device
    if wanted in gpus:
        return (wanted,)
    there = ", ".join(("cpu", *gpus))
    raise UsageError(f"device {device} is not here: there is {there}; allowed are auto, cpu, cuda:N and cuda:all")
