"""What this machine has for labelling, what is missing and which command brings it, and what `auto` makes of it."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harec_deploy import machine
from harec_deploy.probes import CUDA_LIBRARIES, PATIENCE_S, PROBES, Answer, ask

_GIB = 1 << 30
_CLASHING = ("onnxruntime", "onnxruntime-gpu")  # they overwrite each other's files
Facts = dict[str, Any]
Answers = dict[str, Answer]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked for.

    state: "ok", "missing", "broken" or "unknown". told: for a person; facts: the same for machines.
    remedy: the command that brings what is missing, "" where none does.
    """

    name: str
    state: str
    told: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def examine(bundle: Path | None = None, *, patience_s: float = PATIENCE_S) -> list[Finding]:
    """Look at everything; what is broken is a finding, never an error.

    bundle: what `auto` would choose is told for this one, after measuring it.
    patience_s: how long each package may take to be imported and asked.
    """
    arguments = {"choice": (str(bundle),) if bundle else ()}
    with ThreadPoolExecutor(machine.cores()) as pool:
        asked = {name: pool.submit(ask, name, *arguments.get(name, ()), patience_s=patience_s) for name in PROBES}
        answers = {name: each.result() for name, each in asked.items()}
    return [_cpu(), _memory(), *(_find(answers, name) for name in PROBES)]


def _cpu() -> Finding:
    facts = machine.cpu()
    quota = "" if facts["cores_in_quota"] is None else f" (control group: {facts['cores_in_quota']:g})"
    sets = facts["instruction_sets"]
    has, lacks = ([name for name, there in sets.items() if there is wanted] for wanted in (True, False))
    told = f"{facts['model']}, {facts['cores_allowed']:g} of {facts['cores']} cores allowed{quota}; "
    return Finding("CPU", "ok", told + _listed(has, lacks), facts=facts | {"python": sys.version.split()[0]})


def _memory() -> Finding:
    facts = machine.memory()
    limit, shared = facts["memory_limit_bytes"], facts["shared_memory_bytes"]
    told = f"{_gib(facts['memory_free_bytes'])} of {_gib(facts['memory_bytes'])} GiB free"
    told += f", limited to {_gib(limit)} by a control group" if limit else ""
    told += f"; /dev/shm {_gib(facts['shared_memory_free_bytes'])} of {_gib(shared)}" if shared else "; no /dev/shm"
    return Finding("memory", "ok", f"{told}; for temporary files {_gib(facts['temporary_free_bytes'])}", facts=facts)


def _gib(count: int | None) -> str:
    return f"{(count or 0) / _GIB:.1f}"


def _listed(has: list[str], lacks: list[str]) -> str:
    return " ".join(has) + (f"; without {' '.join(lacks)}" if lacks else "")


def _find(answers: Answers, name: str) -> Finding:
    """Make a finding of a probe's answer."""
    answer, (title, tell, remedy) = answers[name], _ROWS[name]
    state, told = answer.state, answer.told or "not installed"
    facts = answer.facts or {}
    if state == "ok":
        state, told = tell(facts, answers)
    line = remedy(answers) if state in ("missing", "broken") else ""
    if state == "broken":  # it is installed, so without this pip would do nothing
        line = line.replace("pip install", "pip install --force-reinstall")
    found = Finding(title, state, told, line, facts)
    return _without_clash(found, answers) if name == "onnxruntime" else found


def _without_clash(found: Finding, answers: Answers) -> Finding:
    """Say so where both packages of ONNX Runtime are installed, whatever is left of them."""
    there = {name: number for name in _CLASHING if (number := _installed(name))}
    facts = found.facts | {"distributions": there}
    if len(there) < len(_CLASHING):
        return replace(found, facts=facts)
    names = " and ".join(" ".join(each) for each in there.items())
    told = f"{names} are both installed and overwrite each other's files; what is left: {found.told}"
    line = f"pip uninstall -y {' '.join(_CLASHING)} && {_pip_onnxruntime(answers)}"
    return replace(found, state="broken", told=told, remedy=line, facts=facts)


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _has_gpu(answers: Answers) -> bool:
    return bool((answers["gpu"].facts or {}).get("devices"))


def _pip(line: str) -> Callable[[Answers], str]:
    return lambda _: f"pip install {line}" if line else ""


def _pip_onnxruntime(answers: Answers) -> str:
    return f"pip install 'harec-deploy[{'gpu' if _has_gpu(answers) else 'ort'}]'"


def _pip_cuda(answers: Answers) -> str:
    there = (answers["cuda"].facts or {}).get("libraries", {})
    packages = dict.fromkeys(package for name, package in CUDA_LIBRARIES.items() if name not in there)
    return f"pip install {' '.join(packages)}"


def _gpus(facts: Facts, _: Answers) -> tuple[str, str]:
    if not facts["devices"]:
        return "missing", "no CUDA driver here (libcuda.so.1), or it shows this process no GPU"
    told = (
        f"{each['device']}: {each['name']}, compute {'.'.join(map(str, each['capability']))}, "
        f"{_gib(each['memory_bytes'])} GiB, driver for CUDA {'.'.join(map(str, each['driver']))}"
        for each in facts["devices"]
    )
    return "ok", "\n".join(told)


def _nvdec(facts: Facts, answers: Answers) -> tuple[str, str]:
    if not _has_gpu(answers):
        return "missing", "no GPU"
    if not facts["library"]:
        return "unknown", "no libnvcuvid.so.1: a container needs NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"
    told = []
    for device, codecs in facts["devices"].items():
        has, lacks = ([name for name, caps in codecs.items() if bool(caps) is wanted] for wanted in (True, False))
        count = max((caps["nvdecs"] for caps in codecs.values() if caps), default=0)  # 0: the driver does not say
        told.append(f"{device}: {count or 'an unknown number of'} decoders; {_listed(has, lacks)}")
    return "ok", "\n".join(told)


def _cuda(facts: Facts, _: Answers) -> tuple[str, str]:
    has = [Path(where).name.removeprefix("lib") for where in facts["libraries"].values()]
    lacks = [name for name in CUDA_LIBRARIES if name not in facts["libraries"]]
    return "missing" if lacks else "ok", _listed(has, lacks) if has else "not installed"


def _version(facts: Facts, _: Answers) -> tuple[str, str]:
    return "ok", facts["version"]


def _onnxruntime(facts: Facts, _: Answers) -> tuple[str, str]:
    providers = (each.removesuffix("ExecutionProvider") for each in facts["providers"])
    return "ok", f"{facts['version']}, providers {', '.join(providers)}"


def _openvino(facts: Facts, _: Answers) -> tuple[str, str]:
    where = f"devices {', '.join(facts['devices'])}; on the CPU {' '.join(facts['cpu_precisions'])}"
    return "ok", f"{facts['version']}, {where}"


def _torch(facts: Facts, _: Answers) -> tuple[str, str]:
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built without CUDA"
    return "ok", f"{facts['version']}, {build}, {'sees a GPU' if facts['cuda_available'] else 'sees no GPU'}"


def _pyav(facts: Facts, _: Answers) -> tuple[str, str]:
    codecs = _listed(facts["decoders"], facts["missing"])
    return "ok", f"{facts['version']} with FFmpeg {facts['ffmpeg']}; decodes {codecs}"


def _choice(facts: Facts, _: Answers) -> tuple[str, str]:
    decoder = f"decoder {facts['decoder']}: {facts['decoder_reason']}"
    if "runner" in facts:
        chosen = f"device {facts['device']}, runner {facts['runner']} in {facts['precision']}, of {facts['variant']}"
        return "ok", f"{chosen}: {facts['reason']}\n{decoder}"
    place = next((place for place, runners in facts["runners"].items() if runners), "")
    if not place:
        return "missing", "no runner is installed"
    runners = facts["runners"][place]
    why = "a GPU and a runner for it" if place != "cpu" else "no GPU with a runner for it"
    how = "the only one installed" if len(runners) == 1 else "the fastest on the bundle that its proofs allow"
    return "ok", f"device {place}: {why}\nrunner {' or '.join(runners)}: {how}\n{decoder}"


# Of each probe: its title, what makes (state, words) of its facts, and the command that brings what is missing.
_ROWS: dict[str, tuple[str, Callable[[Facts, Answers], tuple[str, str]], Callable[[Answers], str]]] = {
    "gpu": ("GPU", _gpus, _pip("")),
    "nvdec": ("NVDEC", _nvdec, _pip("")),
    "cuda": ("CUDA", _cuda, _pip_cuda),
    "cuda_core": ("cuda-core", _version, _pip("'cuda-core[cu13]'")),
    "tensorrt": ("TensorRT", _version, _pip("--extra-index-url https://pypi.nvidia.com tensorrt-cu13")),
    "dali": ("DALI", _version, _pip("'harec-deploy[dali]'")),
    "onnxruntime": ("ONNX Runtime", _onnxruntime, _pip_onnxruntime),
    "openvino": ("OpenVINO", _openvino, _pip("openvino")),
    "torch": ("PyTorch", _torch, _pip("'harec-deploy[export]'")),
    "pyav": ("PyAV", _pyav, _pip("av")),
    "choice": ("auto", _choice, _pip("")),
}
