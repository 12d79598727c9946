"""Follows what each expression of a file is, as far as TensorRT is concerned; contract.py judges the calls."""

import ast
from typing import Any

from tests.tensorrt.kinds import MODULE, PLAIN, PLAIN_TYPES, UNFOLLOWED, Api, Kind, Local, box, join, row


class Follower:
    """One file against one API; ``faults`` says what is wrong, ``used`` names everything that was looked up."""

    def __init__(self, source: str, api: Api) -> None:
        self.tree, self.api = ast.parse(source), api
        self.faults: list[str] = []
        self.used: set[str] = set()
        self.locals: dict[str, Local] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.globals: dict[str, Kind] = {}
        self.known_imports: set[str] = set()
        for _ in range(3):  # what one method gives to self, another uses: until nothing new is learnt
            self.faults.clear()
            self._statements(self.tree.body, self.globals, "")
        self.faults = sorted(set(self.faults), key=lambda text: (int(text.split(":")[0]), text))

    def member(self, name: str, attribute: str) -> dict[str, Any] | None:
        """Look an attribute up in a class of the bindings; inherited ones are listed there too."""
        found: dict[str, Any] | None = self.api["classes"][name]["members"].get(attribute)
        return found

    def is_a(self, name: str, wanted: str) -> bool:
        base = self.locals[name].base if name in self.locals else name
        return base == wanted or (base in self.api["classes"] and wanted in self.api["classes"][base]["bases"])

    def kind_of(self, told: str) -> Kind:
        """Return what a type of a docstring stands for."""
        if told.startswith("list[") and told.endswith("]"):
            return box(self.kind_of(told[5:-1]))
        if told in self.api["classes"]:
            return Kind("object", told)
        if told in PLAIN_TYPES or told.startswith("collections.abc.Sequence[typing."):
            return PLAIN
        return Kind("lost", f"the bindings call it {told}")

    def fault(self, node: ast.AST, text: str) -> None:
        self.faults.append(f"{getattr(node, 'lineno', 0)}: {text}")

    def annotated(self, node: ast.expr | None) -> Kind:
        """Return what an annotation promises."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return join(self.annotated(node.left), self.annotated(node.right))
        if isinstance(node, ast.Subscript):
            inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            kinds = [self.annotated(each) for each in inside if not isinstance(each, ast.List)]
            outer = node.value.id if isinstance(node.value, ast.Name) else ""
            if outer in ("Callable", "Literal", "Annotated"):
                return PLAIN
            if outer == "tuple" and len(inside) > 1 and not isinstance(inside[-1], ast.Constant):
                return row(kinds)
            return box(kinds[-1] if outer in ("dict", "Mapping", "defaultdict", "OrderedDict") else kinds[0])
        if isinstance(node, ast.Name):
            if node.id in self.locals:
                return Kind("object", node.id)
            if node.id in ("Any", "object"):
                return Kind("lost", f"annotated as {node.id}")
        if isinstance(node, (ast.Name, ast.Attribute)):
            kind = self.value(node, self.globals)
            return Kind("object", kind.name) if kind.what == "class" else PLAIN
        return PLAIN

    def _statements(self, body: list[ast.stmt], env: dict[str, Kind], inside: str) -> None:
        for node in body:
            self._statement(node, env, inside)

    def _statement(self, node: ast.stmt, env: dict[str, Kind], inside: str) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node, env)
        elif isinstance(node, ast.ClassDef):
            self._class(node)
        elif isinstance(node, ast.FunctionDef):
            if env is self.globals and not inside:
                self.functions[node.name] = node
            else:
                env[node.name] = PLAIN
            self._function(node, env, inside)
        elif isinstance(node, ast.AnnAssign):
            kind = self.annotated(node.annotation)
            if node.value is not None:
                self._fits(node, self.value(node.value, env), kind, "the annotation")
            self.bind(node.target, kind, env)
        elif isinstance(node, ast.Assign):
            kind = self.value(node.value, env)
            for target in node.targets:
                self.bind(target, kind, env)
        elif isinstance(node, ast.AugAssign):
            self.value(node.value, env)
            self.bind(node.target, self.value(node.target, env), env)
        elif isinstance(node, ast.For):
            self.bind(node.target, self.item(node.iter, env), env)
            self._statements([*node.body, *node.orelse], env, inside)
        elif isinstance(node, ast.With):
            for each in node.items:
                kind = self.value(each.context_expr, env)
                if kind.what == "object" and kind.name in self.api["classes"]:
                    self.fault(node, f"with over {kind}: deprecated, it does nothing")
                if each.optional_vars is not None:
                    self.bind(each.optional_vars, kind, env)
            self._statements(node.body, env, inside)
        else:
            if isinstance(node, UNFOLLOWED):
                self.fault(node, f"{type(node).__name__} is not followed: write it otherwise")
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.value(child, env)
                elif isinstance(child, ast.ExceptHandler):
                    if child.name:
                        env[child.name] = PLAIN
                    self._statements(child.body, env, inside)
                elif isinstance(child, ast.stmt):
                    self._statement(child, env, inside)

    def _import(self, node: ast.Import | ast.ImportFrom, env: dict[str, Kind]) -> None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            if isinstance(node, ast.Import):
                env[name] = MODULE if alias.name == "tensorrt" else PLAIN
            elif node.module == "tensorrt":
                env[name] = self._of_module(node, alias.name)
            else:
                env[name] = PLAIN

    def _class(self, node: ast.ClassDef) -> None:
        local = self.locals.setdefault(node.name, Local(node))
        bases = [self.value(base, self.globals) for base in node.bases]
        local.base = next((base.name for base in bases if base.what == "class"), "")
        self.globals[node.name] = Kind("class", node.name)
        for child in node.body:
            if isinstance(child, ast.FunctionDef):
                local.methods[child.name] = child
                self._function(child, self.globals, node.name)
                if local.base in self.api["classes"]:
                    self._override(local.base, child)
            elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                local.attributes[child.target.id] = self.annotated(child.annotation)
            else:
                self._statement(child, {**self.globals}, node.name)
        if local.base in self.api["classes"]:
            started = [call for call in ast.walk(node) if isinstance(call, ast.Attribute) and call.attr == "__init__"]
            if not started:
                self.fault(node, f"{node.name} does not call {local.base}.__init__: the bindings refuse such an object")

    def _function(self, node: ast.FunctionDef, env: dict[str, Kind], inside: str) -> None:
        own = dict(env)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for place, argument in enumerate(arguments):
            if inside and place == 0 and argument.annotation is None:
                own[argument.arg] = Kind("object", inside) if inside in self.locals else PLAIN
            elif argument.annotation is None:
                own[argument.arg] = Kind("lost", f"{argument.arg} has no annotation")
            else:
                own[argument.arg] = self.annotated(argument.annotation)
        for extra in (node.args.vararg, node.args.kwarg):
            if extra is not None:
                own[extra.arg] = box(self.annotated(extra.annotation))
        for default in [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]:
            self.value(default, env)
        before = len(self.faults)
        self._statements(node.body, own, "")
        del self.faults[before:]  # the second time, a loop or an inner function knows what is bound below it
        self._statements(node.body, own, "")
        for each in ast.walk(node):
            if isinstance(each, ast.Return) and each.value is not None:
                self._fits(each, self.value(each.value, own), self.annotated(node.returns), "the function's result")

    def bind(self, target: ast.expr, kind: Kind, env: dict[str, Kind]) -> None:
        """Note what a name or attribute is from here on."""
        if isinstance(target, ast.Name):
            env[target.id] = kind if env is self.globals else join(kind, env.get(target.id, PLAIN))
        elif isinstance(target, (ast.Tuple, ast.List)):
            for place, each in enumerate(target.elts):
                part = kind.of[0] if kind.what == "box" else kind
                self.bind(each, kind.of[place] if kind.what == "row" and place < len(kind.of) else part, env)
        elif isinstance(target, ast.Attribute):
            owner = self.value(target.value, env)
            if owner.what == "object" and owner.name in self.locals:
                attributes = self.locals[owner.name].attributes
                attributes[target.attr] = join(kind, attributes.get(target.attr, PLAIN))
            elif owner.what == "object":
                self._set(target, owner, kind)
            elif owner.what == "lost":
                self.fault(target, f"cannot tell what .{target.attr} is set on: {owner.name}")
        elif isinstance(target, ast.Subscript):
            self.value(target.value, env)
            self.value(target.slice, env)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, box(kind), env)

    def _set(self, node: ast.Attribute, owner: Kind, kind: Kind) -> None:
        found = self.member(owner.name, node.attr)
        self.used.add(f"{owner.name}.{node.attr}")
        if found is None or found["kind"] != "property":
            self.fault(node, f"{owner.name} has no property {node.attr}")
        elif not found["settable"]:
            self.fault(node, f"{owner.name}.{node.attr} cannot be set")
        else:
            self._fits(node, kind, self.kind_of(found["returns"]), f"{owner.name}.{node.attr}")

    def _fits(self, node: ast.AST, given: Kind, wanted: Kind, where: str) -> None:
        """A TensorRT object may only stand where its class, or a base of it, is expected."""
        if given.what == "object" and (given.name in self.api["classes"] or self.locals[given.name].base):
            if wanted.what == "lost" or (wanted.what == "object" and self.is_a(given.name, wanted.name)):
                return
            if wanted != given:
                self.fault(node, f"{given} where {where} is {wanted}")
        elif given.what == "box" and wanted != given and wanted.what != "lost":
            self.fault(node, f"{given} of {given.of[0]} where {where} is {wanted}")

    def _leaves(self, node: ast.AST, kind: Kind, where: str) -> None:
        """What goes where it cannot be followed must not be of TensorRT, nor hold anything of it."""
        if self._carries(kind, set()):
            self.fault(node, f"{kind} goes into {where}, where it cannot be followed")

    def _carries(self, kind: Kind, seen: set[str]) -> bool:
        if kind.what in ("box", "row"):
            return any(self._carries(each, seen) for each in kind.of)
        if kind.what == "method":
            return kind.of[0].name in self.api["classes"]
        if kind.what not in ("class", "object") or kind.name in seen:
            return False
        if kind.name in self.api["classes"]:
            return True
        local = self.locals[kind.name]
        inside = any(self._carries(each, {*seen, kind.name}) for each in local.attributes.values())
        return kind.what == "object" and (bool(local.base) or inside)

    def value(self, node: ast.expr, env: dict[str, Kind]) -> Kind:
        """Return what an expression is, and check all that is in it."""
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if handler is not None:
            kind: Kind = handler(node, env)
            return kind
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.value(child, env)
        return PLAIN

    def _name(self, node: ast.Name, env: dict[str, Kind]) -> Kind:
        if node.id in env:
            return env[node.id]
        if node.id in self.functions:
            return Kind("function", node.id)
        return self.globals.get(node.id, PLAIN)

    def _namedexpr(self, node: ast.NamedExpr, env: dict[str, Kind]) -> Kind:
        kind = self.value(node.value, env)
        self.bind(node.target, kind, env)
        return kind

    def _ifexp(self, node: ast.IfExp, env: dict[str, Kind]) -> Kind:
        self.value(node.test, env)
        return join(self.value(node.body, env), self.value(node.orelse, env))

    def _boolop(self, node: ast.BoolOp, env: dict[str, Kind]) -> Kind:
        kinds = [self.value(each, env) for each in node.values]
        result = kinds[0]
        for kind in kinds[1:]:
            result = join(result, kind)
        return result

    def _tuple(self, node: ast.Tuple, env: dict[str, Kind]) -> Kind:
        return row([self.value(each, env) for each in node.elts])

    def _list(self, node: ast.List, env: dict[str, Kind]) -> Kind:
        result = PLAIN
        for each in node.elts:
            result = join(result, self.value(each, env))
        return box(result)

    def _dict(self, node: ast.Dict, env: dict[str, Kind]) -> Kind:
        result = PLAIN
        for key, each in zip(node.keys, node.values, strict=True):
            if key is not None:
                self.value(key, env)
                result = join(result, self.value(each, env))
        return box(result)

    def _starred(self, node: ast.Starred, env: dict[str, Kind]) -> Kind:
        return self.item(node.value, env)

    def _lambda(self, node: ast.Lambda, env: dict[str, Kind]) -> Kind:
        names = {argument.arg: Kind("lost", f"{argument.arg} of a lambda") for argument in node.args.args}
        self._leaves(node, self.value(node.body, {**env, **names}), "a lambda")
        return PLAIN

    def _yield(self, node: ast.Yield, env: dict[str, Kind]) -> Kind:
        if node.value is not None:
            self._leaves(node, self.value(node.value, env), "yield")
        return PLAIN

    def _listcomp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp, env: dict[str, Kind]) -> Kind:
        return box(self.value(node.elt, self._comprehension(node.generators, env)))

    _generatorexp = _setcomp = _listcomp

    def _dictcomp(self, node: ast.DictComp, env: dict[str, Kind]) -> Kind:
        own = self._comprehension(node.generators, env)
        self.value(node.key, own)
        return box(self.value(node.value, own))

    def _comprehension(self, generators: list[ast.comprehension], env: dict[str, Kind]) -> dict[str, Kind]:
        own = dict(env)
        for each in generators:
            self.bind(each.target, self.item(each.iter, own), own)
            for test in each.ifs:
                self.value(test, own)
        return own

    def item(self, node: ast.expr, env: dict[str, Kind]) -> Kind:
        """Return what iterating over an expression gives."""
        kind = self.value(node, env)
        if kind.what == "box":
            return kind.of[0]
        if kind.what == "row":
            return next((each for each in kind.of if each != PLAIN), PLAIN)
        if kind.what == "object" and kind.name in self.api["classes"]:
            return self._special(node, kind, "__getitem__")
        return kind if kind.what == "lost" else PLAIN

    def _special(self, node: ast.AST, kind: Kind, name: str) -> Kind:
        found = self.member(kind.name, name)
        if found is None:
            self.fault(node, f"{kind.name} has no {name}")
            return PLAIN
        returns = {each["returns"] for each in found["signatures"] if not each["returns"].startswith("list[")}
        return self.kind_of(returns.pop()) if len(returns) == 1 else PLAIN

    def _subscript(self, node: ast.Subscript, env: dict[str, Kind]) -> Kind:
        self.value(node.slice, env)
        owner = self.value(node.value, env)
        if owner.what == "row" and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
            return owner.of[node.slice.value]
        if owner.what == "box":
            return owner if isinstance(node.slice, ast.Slice) else owner.of[0]
        if owner.what == "object" and owner.name in self.api["classes"]:
            return self._special(node, owner, "__getitem__")
        return owner if owner.what in ("lost", "row") else PLAIN

    def _attribute(self, node: ast.Attribute, env: dict[str, Kind]) -> Kind:
        owner = self.value(node.value, env)
        if owner.what == "lost":
            self.fault(node, f"cannot tell what .{node.attr} is asked of ({owner.name}): annotate it")
        elif owner.what == "module":
            return self._of_module(node, node.attr)
        elif owner.what == "box":
            return Kind("method", node.attr, (owner,))
        elif owner.what in ("class", "object"):
            return self._of_class(node, owner)
        return PLAIN

    def _of_module(self, node: ast.AST, name: str) -> Kind:
        self.used.add(name)
        if name not in self.api["names"]:
            self.fault(node, f"tensorrt has no {name}")
            return PLAIN
        if self.api["names"][name] == "function":
            return Kind("method", name, (MODULE,))
        return Kind("class", name) if name in self.api["classes"] else PLAIN

    def _of_class(self, node: ast.Attribute, owner: Kind) -> Kind:
        if owner.name in self.locals:
            local = self.locals[owner.name]
            if node.attr in local.attributes:
                return local.attributes[node.attr]
            if node.attr in local.methods:
                decorators = [each.id for each in local.methods[node.attr].decorator_list if isinstance(each, ast.Name)]
                kind = Kind("method", node.attr, (owner,))
                return self.annotated(local.methods[node.attr].returns) if "property" in decorators else kind
            if not local.base or local.base not in self.api["classes"]:
                return PLAIN
            owner = Kind(owner.what, local.base)
        found = self.member(owner.name, node.attr)
        self.used.add(f"{owner.name}.{node.attr}")
        if found is None:
            self.fault(node, f"{owner.name} has no {node.attr}")
            return PLAIN
        if found["kind"] == "class":
            return Kind("class", found["returns"])
        if found["kind"] in ("property", "value"):
            if owner.what == "class" and found["kind"] == "property":
                self.fault(node, f"{owner.name}.{node.attr} is a property, asked of the class")
            return self.kind_of(found["returns"])
        return Kind("method", node.attr, (owner,))

    def _call(self, node: ast.Call, env: dict[str, Kind]) -> Kind:
        raise NotImplementedError

    def _override(self, base: str, node: ast.FunctionDef) -> None:
        raise NotImplementedError
