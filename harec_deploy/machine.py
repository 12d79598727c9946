"""What this machine has for a run: processor, cores that may be used, memory, space; no package is needed to know."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harec_deploy import __version__
from harec_deploy.devices import cuda_devices

CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
# Distributions whose version decides how fast a model runs, and those that decide how fast a video is decoded.
RUNTIMES = ("openvino", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt-cu13", "tensorrt-cu12", "tensorrt")
_LIBRARIES = (*RUNTIMES, "torchvision", "av", "nvidia-dali-cuda130", "numpy")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, not written to
# The instruction sets that decide how fast a network runs, and the flags of /proc/cpuinfo that mean them.
_SETS = {
    "avx2": ("avx2",),
    "avx512f": ("avx512f",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "amx": ("amx_tile",),
}


def cpu() -> dict[str, Any]:
    """Return the processor's model, its cores, how many of them this process may use, and its instruction sets."""
    usable = float(len(os.sched_getaffinity(0)))
    quota = cpu_quota()
    return {
        "model": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "cores_in_affinity": int(usable),
        "cores_in_quota": quota,
        "cores_allowed": min(usable, quota) if quota else usable,
        "instruction_sets": instruction_sets(),
    }


def cores() -> int:
    """Return how many whole cores this process may use by affinity and control groups, at least one."""
    return max(int(cpu()["cores_allowed"]), 1)


def instruction_sets() -> dict[str, bool]:
    """Tell which instruction sets the processor has."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return {name: bool(flags.intersection(known)) for name, known in _SETS.items()}


def identity() -> dict[str, Any]:
    """Return what must be the same for a measured choice of a runner to hold: processor, cores, GPUs, runtimes."""
    about = cpu()
    return {
        "cpu": about["model"],
        "cores": about["cores_allowed"],
        "gpus": [device.name for device in cuda_devices()],
        "runtimes": versions(RUNTIMES),
    }


def facts() -> dict[str, Any]:
    """Return what a measured figure is told with: processor, GPUs, memory, system, versions of all that takes part."""
    return {
        "cpu": cpu(),
        "gpus": [device.name for device in cuda_devices()],
        "memory_bytes": memory()["memory_bytes"],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {"harec-deploy": __version__, **versions(_LIBRARIES)},
    }


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the version of each of these distributions that is installed, without importing any."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def memory() -> dict[str, int | None]:
    """Return bytes: of memory, its limit by control groups, /dev/shm and the folder for temporary files."""
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    shared = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    return {
        "memory_bytes": int(lines["MemTotal"].split()[0]) << 10,
        "memory_free_bytes": int(lines["MemAvailable"].split()[0]) << 10,
        "memory_limit_bytes": memory_limit(),
        "shared_memory_bytes": shared.total if shared else None,
        "shared_memory_free_bytes": shared.free if shared else None,
        "temporary_free_bytes": shutil.disk_usage(tempfile.gettempdir()).free,
    }


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return how many cores' time the control groups of this process leave it, or None without a limit."""
    limits = []
    for group in _groups("cpu", proc, root):
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdecimal():  # "max" and -1 are no limit
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory_limit(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory that the control groups of this process leave it, or None without a limit."""
    limits = []
    for group in _groups("memory", proc, root):
        words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        if words and words[0].isdecimal():
            limits.append(int(words[0]))
    # Version 1 has no word for "no limit" and gives a number of nearly 2^63.
    return min((limit for limit in limits if limit < 1 << 60), default=None)


def _groups(controller: str, proc: Path, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it, of both versions of the interface."""
    for line in _lines(proc):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        own = base / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(base))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # another system, or hidden from us
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _cpuinfo(key: str) -> str:
    """Return what /proc/cpuinfo says of the first core, "" where it says nothing."""
    for line in _lines(CPUINFO):
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
