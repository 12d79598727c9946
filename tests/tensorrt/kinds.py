"""What an expression can be, as far as TensorRT is concerned."""

import ast
from dataclasses import dataclass, field
from typing import Any

Api = dict[str, Any]

# Builtins that may be given a TensorRT object, because they make a plain value of it, or a container.
CONVERSIONS = "bool bytes hash id int isinstance len memoryview print range repr str type".split()
CONTAINERS = "enumerate iter list next reversed set tuple zip".split()
ORDERED = "max min sorted".split()
UNFOLLOWED = (ast.Match, ast.AsyncFor, ast.AsyncWith, ast.AsyncFunctionDef)
PLAIN_TYPES = "bool int str float None bytes memoryview tuple dict list typing.SupportsInt typing.SupportsFloat".split()


@dataclass(frozen=True)
class Kind:
    """What an expression is.

    what: "plain" (nothing of TensorRT), "module", "class", "object", "method" (of a class or object), "function" (of
    the file), "box" (a container; ``of`` has what it holds), "row" (a tuple) or "lost" (cannot be told; ``name`` says
    why).
    """

    what: str
    name: str = ""
    of: tuple["Kind", ...] = ()

    def __str__(self) -> str:
        return f"{self.what} {self.name}".strip()


PLAIN, MODULE = Kind("plain"), Kind("module")


def box(inner: Kind) -> Kind:
    return PLAIN if inner == PLAIN else Kind("box", of=(inner,))


def row(kinds: list[Kind]) -> Kind:
    return PLAIN if all(kind == PLAIN for kind in kinds) else Kind("row", of=tuple(kinds))


def join(first: Kind, second: Kind) -> Kind:
    """Return what an expression is that is one or the other; None and plain defaults stand beside anything."""
    if first == second or second == PLAIN:
        return first
    return second if first == PLAIN else Kind("lost", f"{first} or {second}")


@dataclass
class Local:
    """A class of the file: its TensorRT base if it has one, its methods, what its attributes are."""

    node: ast.ClassDef
    base: str = ""
    methods: dict[str, ast.FunctionDef] = field(default_factory=dict)
    attributes: dict[str, Kind] = field(default_factory=dict)
