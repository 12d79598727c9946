"""NVIDIA's own Python bindings without TensorRT: imported over empty libraries, and what they say of themselves.

The bindings of PyPI link to three libraries of which they need a dozen names at import. Libraries that have those
names and nothing else let every class, signature and enum be read; Builder and Runtime cannot be made. Run as a
program, with the folder of the bindings and the libraries as arguments, this file prints their API as JSON, or runs
another program under those bindings.
"""

import ctypes
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSIONS = ("10.13.3.9", "11.4.0.106")  # both ends of what is supported; the Makefile installs the same
PACKAGE = "tensorrt_bindings"
SYMBOLS = {
    "nvinfer": "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "getBuilderPluginRegistry getPluginRegistry",
    "nvinfer_plugin": "initLibNvInferPlugins",
    "nvonnxparser": "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion",
}
# What a docstring calls a class by its C++ name where that was not registered yet.
CPP_NAMES = {"IParserError": "ParserError", "IBuilder": "Builder"}


def folder(version: str) -> Path:
    """Return where the bindings of a version are expected: in the virtual environment, as the Makefile puts them."""
    return Path(os.environ.get("HAREC_TENSORRT_BINDINGS", sys.prefix)) / f"tensorrt-{version}"


def missing(version: str) -> str:
    """Say what is missing to import the bindings of a version; "" if nothing."""
    if not (folder(version) / PACKAGE).is_dir():
        return f"no tensorrt-cu13-bindings {version} in {folder(version)}: make .venv/.ready puts them there"
    if shutil.which("cc") is None:
        return "no C compiler (cc) to make the empty libraries with"
    return ""


def compile_libraries(version: str, place: Path) -> list[Path]:
    """Compile the empty libraries of a version; every function of theirs returns a null pointer."""
    major, made = version.partition(".")[0], []
    for name, symbols in SYMBOLS.items():
        source, library = place / f"{name}.c", place / f"lib{name}.so.{major}"
        source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols.split()))
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run(["cc", "-shared", "-fPIC", "-nostdlib", soname, "-o", library, source], check=True)
        made.append(library)
    return made


def run(version: str, place: Path, *program: str) -> str:
    """Return what a program prints that runs with the real bindings as ``tensorrt``; without one, their API as JSON."""
    libraries = map(str, compile_libraries(version, place))
    command = [sys.executable, __file__, str(folder(version)), ",".join(libraries), *program]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    return done.stdout


def _import(package: str, libraries: str) -> Any:
    for library in libraries.split(","):
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    sys.path.insert(0, package)
    module = __import__(PACKAGE)
    sys.modules["tensorrt"] = module
    return module


def describe(module: Any) -> dict[str, Any]:
    """Return {version, names, classes: {class: {bases, members}}} of the bindings."""
    classes: dict[str, type] = {}
    names = {}
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__.startswith(PACKAGE):
            _collect(value, classes)
        names[name] = "class" if isinstance(value, type) else "function" if callable(value) else "value"
    return {
        "version": module.__version__,
        "names": names,
        "classes": {name: _describe_class(cls, set(classes)) for name, cls in classes.items()},
    }


def _collect(cls: type, classes: dict[str, type]) -> None:
    classes[cls.__qualname__] = cls
    for value in vars(cls).values():
        if isinstance(value, type) and value.__module__.startswith(PACKAGE) and value.__qualname__ not in classes:
            _collect(value, classes)


def _describe_class(cls: type, known: set[str]) -> dict[str, Any]:
    members = {}
    for name, value in inspect.getmembers_static(cls) if sys.version_info >= (3, 11) else _members(cls):
        members[name] = _describe_member(cls, name, value, known)
    for name in getattr(cls, "__members__", {}):
        members[name] = {"kind": "value", "returns": cls.__qualname__}
    bases = [base.__qualname__ for base in cls.__mro__[1:] if base.__module__.startswith(PACKAGE)]
    return {"bases": bases, "members": members}


def _members(cls: type) -> list[tuple[str, Any]]:
    return [(name, inspect.getattr_static(cls, name)) for name in dir(cls)]


def _describe_member(cls: type, name: str, value: Any, known: set[str]) -> dict[str, Any]:
    if name in ("name", "value") and hasattr(cls, "__members__"):  # of an enum's value; no docstring says what they are
        return {"kind": "property", "returns": "str" if name == "name" else "int", "settable": False}
    if isinstance(value, property):
        told = signatures("", value.fget.__doc__ or "", known)
        return {"kind": "property", "returns": told[0]["returns"] if told else "?", "settable": value.fset is not None}
    if isinstance(value, type):
        return {"kind": "class", "returns": value.__qualname__}
    if callable(getattr(cls, name, None)):
        static = isinstance(value, staticmethod)
        told = signatures(name, getattr(cls, name).__doc__ or "", known)
        return {"kind": "static" if static else "method", "signatures": told}
    held = type(getattr(cls, name, None)).__qualname__
    return {"kind": "value", "returns": held if held in known else "?"}


def signatures(name: str, doc: str, known: set[str]) -> list[dict[str, Any]]:
    """Return the overloads that pybind11 writes into a docstring: parameters without self, and what returns."""
    found = []
    for line in doc.splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(name)}\((?!\*args, \*\*kwargs\))(.*)\) -> (.+)$", line.strip())
        if match:
            parameters = [_parameter(text, known) for text in _split(match[1]) if text != "/"]
            if parameters and parameters[0]["name"] in ("self", "arg0" if not name else "self"):
                parameters = parameters[1:]
            found.append({"parameters": parameters, "returns": plain(match[2], known)})
    return found


def _split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _parameter(text: str, known: set[str]) -> dict[str, Any]:
    head, equals, _ = text.partition(" = ")
    name, _, kind = head.partition(":")
    return {"name": name.strip(), "type": plain(kind.strip(), known), "optional": bool(equals)}


def plain(text: str, known: set[str]) -> str:
    """Return a type without its module or C++ namespace."""
    text = text.strip().replace(f"{PACKAGE}.tensorrt.", "").replace("List[", "list[")
    inner = re.fullmatch(r"list\[(.+)\]", text)
    if inner:
        return f"list[{plain(inner[1], known)}]"
    last = text.rpartition("::")[2]
    last = CPP_NAMES.get(last, last)
    return last if last in known else text


if __name__ == "__main__":
    bindings = _import(*sys.argv[1:3])
    if len(sys.argv) > 3:
        sys.argv = sys.argv[3:]
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        sys.stdout.write(json.dumps(describe(bindings)))
