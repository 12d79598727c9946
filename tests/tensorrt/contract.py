"""Holds source code against the real bindings: every TensorRT name, call, keyword and enum in a file must exist.

Nothing is listed by hand. The checker walks a file's syntax tree and follows what each expression is, from
``import tensorrt as trt`` over calls, whose results the bindings' signatures name, to variables, attributes of self and
annotated parameters. What it cannot follow is a fault, not a gap: code that uses TensorRT is written so that it can be
followed, which an annotation with the TensorRT class always achieves.
"""

import ast
import inspect
from collections.abc import Iterable
from typing import Any

from tests.tensorrt.follow import Follower
from tests.tensorrt.kinds import CONTAINERS, CONVERSIONS, MODULE, ORDERED, PLAIN, Api, Kind, box, join, row


class Checker(Follower):
    """One file against one API; ``faults`` says what is wrong, ``used`` names everything that was looked up."""

    def _override(self, base: str, node: ast.FunctionDef) -> None:
        """A method that the base has not is never called by TensorRT; one with other parameters fails when it is."""
        found = self.member(base, node.name)
        if found is None:
            asked = {each.attr for each in ast.walk(self.tree) if isinstance(each, ast.Attribute)}
            if not node.name.startswith("_") and node.name not in asked:
                self.fault(node, f"{base} has no {node.name} to override, and nothing here calls it")
            return
        self.used.add(f"{base}.{node.name}")
        if node.name == "__init__":
            return
        given = [argument.arg for argument in node.args.args[1:]]
        wanted = [[each["name"] for each in one["parameters"]] for one in found["signatures"]]
        named = [names for names in wanted if not any(name.startswith("arg") for name in names)]
        if wanted and (len(given) not in map(len, wanted) or (named and given not in named)):
            self.fault(node, f"{base}.{node.name} takes {wanted}, not {given}")

    def _call(self, node: ast.Call, env: dict[str, Kind]) -> Kind:
        callee = self.value(node.func, env)
        if isinstance(node.func, ast.Name) and node.func.id in ORDERED and node.func.id not in env:
            return self._ordered(node, node.func.id, env)
        given = [self.value(each, env) for each in node.args]
        named = {each.arg: self.value(each.value, env) for each in node.keywords}
        if callee.what == "class" and callee.name in self.api["classes"]:
            self._match(node, callee.name, self.member(callee.name, "__init__"), given, named)
            return Kind("object", callee.name)
        if callee.what == "method" and callee.of == (MODULE,):
            return PLAIN  # its functions make plain values of TensorRT's, and back
        if callee.what == "method":
            return self._method(node, callee, given, named)
        if callee.what in ("class", "function"):
            return self._own(node, callee, given, named)
        if isinstance(node.func, ast.Name) and node.func.id in CONTAINERS and node.func.id not in env:
            return self._container(node, node.func.id, env)
        known = isinstance(node.func, ast.Name) and node.func.id in CONVERSIONS
        for kind in [*given, *named.values()]:
            if not known:
                self._leaves(node, kind, ast.unparse(node.func))
        if known and isinstance(node.func, ast.Name) and node.func.id == "int" and given[0].what == "object":
            self._special(node, given[0], "__int__")
        return PLAIN

    def _ordered(self, node: ast.Call, name: str, env: dict[str, Kind]) -> Kind:
        """Follow sorted, min and max, whose key sees what they are given."""
        inner = self.item(node.args[0], env) if len(node.args) == 1 else PLAIN
        for each in node.args if len(node.args) > 1 else []:
            inner = join(inner, self.value(each, env))
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Lambda):
                names = {argument.arg: inner for argument in keyword.value.args.args}
                self.value(keyword.value.body, {**env, **names})
            else:
                self.value(keyword.value, env)
        return box(inner) if name == "sorted" else inner

    def _container(self, node: ast.Call, name: str, env: dict[str, Kind]) -> Kind:
        inner = [self.item(each, env) for each in node.args]
        if name == "next":
            return inner[0] if inner else PLAIN
        if name in ("enumerate", "zip"):
            return box(row([PLAIN, *inner] if name == "enumerate" else inner))
        return box(inner[0]) if inner else PLAIN

    def _method(self, node: ast.Call, callee: Kind, given: list[Kind], named: dict[str | None, Kind]) -> Kind:
        (owner,) = callee.of
        if owner.what == "box":
            if callee.name == "items":
                return box(row([PLAIN, owner.of[0]]))
            return (
                owner if callee.name in ("values", "copy") else owner.of[0] if callee.name in ("get", "pop") else PLAIN
            )
        if owner.name in self.locals:
            return self._own(node, callee, given, named)
        found = self.member(owner.name, callee.name)
        assert found is not None
        if owner.what == "class" and found["kind"] == "method":  # Base.method(self, ...)
            if not given or given[0].what != "object" or not self.is_a(given[0].name, owner.name):
                self.fault(node, f"{owner.name}.{callee.name} is called on no {owner.name}")
            given = given[1:]
        returns = self._match(node, f"{owner.name}.{callee.name}", found, given, named)
        return self.kind_of(returns) if returns else Kind("lost", f"{owner.name}.{callee.name} has no signature")

    def _match(
        self,
        node: ast.Call,
        name: str,
        found: dict[str, Any] | None,
        given: list[Kind],
        named: dict[str | None, Kind],
    ) -> str:
        """Check a call against the overloads; return what the one that takes it returns, or ""."""
        self.used.add(f"{name}()")
        if None in named or any(isinstance(each, ast.Starred) for each in node.args):
            self.fault(node, f"{name} is called with * or **: write the arguments out")
            return ""
        overloads = found["signatures"] if found else []
        if not overloads:
            self.fault(node, f"{name} cannot be called" if found is None else f"{name} tells no signature")
            return ""
        reasons = []
        for one in overloads:
            reason = self._mismatch(one["parameters"], given, named)
            if not reason:
                return str(one["returns"])
            reasons.append(reason)
        self.fault(node, f"{name}: {' / '.join(dict.fromkeys(reasons))}")
        return str(overloads[0]["returns"])

    def _mismatch(self, parameters: list[dict[str, Any]], given: list[Kind], named: dict[str | None, Kind]) -> str:
        if len(given) > len(parameters):
            return f"takes {len(parameters)} arguments, got {len(given)}"
        taken = {each["name"]: kind for each, kind in zip(parameters, given, strict=False)}
        for key, kind in named.items():
            if key not in [each["name"] for each in parameters] or str(key).startswith("arg"):
                return f"has no keyword {key}"
            if key in taken:
                return f"gets {key} twice"
            taken[str(key)] = kind
        for each in parameters:
            if each["name"] not in taken and not each["optional"]:
                return f"needs {each['name']}"
            got, wanted = taken.get(each["name"], PLAIN), self.kind_of(each["type"])
            if got.what == "object" and wanted.what == "object" and not self.is_a(got.name, wanted.name):
                return f"{each['name']} is {wanted.name}, got {got.name}"
            if got.what == "object" and got.name in self.api["classes"] and wanted == PLAIN:
                return f"{each['name']} is {each['type']}, got {got.name}"
        return ""

    def _own(self, node: ast.Call, callee: Kind, given: list[Kind], named: dict[str | None, Kind]) -> Kind:
        """Check a call of the file's own function, method or class: its annotations must not lose a TensorRT object."""
        if callee.what == "class":
            definition, skip, result = self.locals[callee.name].methods.get("__init__"), 1, Kind("object", callee.name)
            if definition is None:  # a dataclass: its fields are annotated
                fields = list(self.locals[callee.name].attributes.items())
                for place, kind in enumerate(given):
                    if place < len(fields):
                        self._fits(node, kind, fields[place][1], fields[place][0])
                for key, kind in named.items():
                    self._fits(node, kind, dict(fields).get(str(key), PLAIN), str(key))
                return result
        elif callee.what == "function":
            definition, skip = self.functions[callee.name], 0
            result = self.annotated(definition.returns)
        else:
            definition = self.locals[callee.of[0].name].methods[callee.name]
            skip = (
                0
                if any(isinstance(each, ast.Name) and each.id == "staticmethod" for each in definition.decorator_list)
                else 1
            )
            result = self.annotated(definition.returns)
        takes = [*definition.args.posonlyargs, *definition.args.args][skip:]
        for place, kind in enumerate(given):
            wanted = self.annotated(takes[place].annotation) if place < len(takes) else PLAIN
            self._fits(node, kind, wanted, f"parameter {place + 1} of {definition.name}")
        every = {each.arg: each.annotation for each in [*takes, *definition.args.kwonlyargs]}
        for key, kind in named.items():
            self._fits(node, kind, self.annotated(every.get(str(key))), f"parameter {key} of {definition.name}")
        return result


def imports_tensorrt(source: str) -> bool:
    """Tell whether a file imports TensorRT anywhere."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "tensorrt" for name in names):
            return True
    return False


def fake_faults(fakes: Iterable[tuple[str, type]], api: Api) -> list[str]:
    """Return where fake classes differ from the bindings: names, parameters, what can be set; names with _ are ours."""
    faults = []
    for name, cls in fakes:
        if name not in api["classes"]:
            faults.append(f"tensorrt has no {name}")
            continue
        real = api["classes"][name]["members"]
        for attribute, value in vars(cls).items():
            if attribute.startswith("_") and attribute != "__init__":
                continue
            there = real.get(attribute)
            if there is None:
                faults.append(f"{name} has no {attribute}")
            elif isinstance(value, property):
                if there["kind"] != "property" or (value.fset is not None) > there["settable"]:
                    faults.append(f"{name}.{attribute} is no such property")
            elif inspect.isfunction(value) and (attribute != "__init__" or there["signatures"]):
                mine = list(inspect.signature(value).parameters.values())[1:]
                given = [(each.name, each.default is not each.empty) for each in mine]
                overloads = [
                    [(each["name"], each["optional"]) for each in one["parameters"]]
                    for one in there.get("signatures", [])
                ]
                loose = [
                    [optional for _, optional in one] for one in overloads if any(n.startswith("arg") for n, _ in one)
                ]
                if given not in overloads and [optional for _, optional in given] not in loose:
                    faults.append(f"{name}.{attribute} takes {overloads}, the fake {given}")
    return faults
