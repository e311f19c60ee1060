"""Statements of the device part: assignments, branches, while loops, calls of Python functions.

In: statements, a scope, the names that are read behind them. Out: operations of the IR. Branches
and loops whose condition is known while tracing leave no trace of themselves.
"""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch_helion import exc
from torch_helion.frontend import advice, carried, indexing, operators
from torch_helion.frontend.expressions import Expressions
from torch_helion.frontend.liveness import live_before, loop_entry
from torch_helion.frontend.scope import Scope
from torch_helion.frontend.source import Source, assigned_names, source_of
from torch_helion.frontend.values import (
    DEVICE,
    Function,
    HostTensor,
    Stack,
    Tensor,
    describe,
    holds,
)
from torch_helion.ir.graph import Origin, Value

RETURN = "return"
"""the name under which a function's result stands in its scope"""
_MOST_ROUNDS = 10_000
Names = frozenset[str]

STATEMENTS = {
    ast.Assert: "assert",
    ast.Raise: "raise",
    ast.With: "with",
    ast.Break: "break",
    ast.Continue: "continue",
    ast.FunctionDef: "def",
    ast.ClassDef: "class",
    ast.Delete: "del",
    ast.Try: "try",
    ast.Import: "import",
    ast.ImportFrom: "import",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.Return: "return",
}


class Statements(Expressions):
    """Executes statements."""

    depth = 0

    def for_(self, node: ast.For, after: Names) -> None:
        raise NotImplementedError

    def block(self, statements: Sequence[ast.stmt], after: Names) -> bool:
        """Execute statements; whether a function has returned in them."""
        for number, statement in enumerate(statements):
            rest = statements[number + 1 :]
            if isinstance(statement, ast.If) and rest and _returns(statement):
                statement = _with_rest(statement, list(rest))
                return self.statement(statement, after)
            if self.statement(statement, live_before(rest, after)):
                return True
        return False

    def statement(self, node: ast.stmt, after: Names) -> bool:
        source = self.scope.source
        text = linecache.getline(source.file, node.lineno).strip()
        outer, self.p.b.origin = self.p.b.origin, Origin(text, source.file, node.lineno)
        try:
            return self._statement(node, after)
        except exc.Base as error:
            if error.location is None:
                error.at(source.at(node))
            raise
        finally:
            self.p.b.origin = outer

    def _statement(self, node: ast.stmt, after: Names) -> bool:
        if isinstance(node, ast.Return) and self.scope.is_helper:
            value = None if node.value is None else self.eval(node.value)
            self.scope.names[RETURN] = value
            return True
        if isinstance(node, ast.Assign):
            self._assign(node)
        elif isinstance(node, ast.AugAssign):
            self._augmented(node)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._store(node.target, self.eval(node.value))
        elif isinstance(node, ast.Expr):
            self.eval(node.value)
        elif isinstance(node, ast.If):
            return self._if(node, after)
        elif isinstance(node, ast.For):
            self.for_(node, after)
        elif isinstance(node, ast.While):
            self._while(node, after)
        elif isinstance(node, ast.Assert) and self.scope.is_helper:
            pass
        elif not isinstance(node, ast.Pass):
            raise self._refused(node)
        return False

    def _refused(self, node: ast.stmt) -> exc.Base:
        name = STATEMENTS.get(type(node))
        if name is None:
            return exc.StatementNotSupported(type(node).__name__)
        return self.not_allowed(name)

    # -- assignments ------------------------------------------------------------------------------

    def _assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1:
            raise exc.AssignmentMultipleTargets()
        self._store(node.targets[0], self.eval(node.value))

    def _store(self, target: ast.expr, value: Any) -> None:
        if not isinstance(target, ast.Subscript):
            self.bind_target(target, value)
            return
        try:
            self._store_at(target, value)
        except exc.Base as error:
            if error.location is None:
                error.at(self.scope.source.at(target))
            raise

    def _store_at(self, target: ast.Subscript, value: Any) -> None:
        owner = self.eval(target.value)
        index = self.eval(target.slice)
        if isinstance(owner, HostTensor | Stack):
            value = self._read(value)
            indexing.store(self.p, owner, self.index(index), value)
        elif isinstance(owner, Tensor):
            raise exc.DeviceTensorSubscriptAssignmentNotAllowed(ast.unparse(target.value))
        elif isinstance(owner, list | dict):
            owner[index] = value
        else:
            raise exc.NonTensorSubscriptAssign(describe(owner), describe(value))

    def _read(self, value: Any) -> Any:
        if isinstance(value, HostTensor) and value.tensor.dim() == 0:
            return indexing.load(self.p, value, ())
        return value

    def _augmented(self, node: ast.AugAssign) -> None:
        target = node.target
        value = self.eval(node.value)
        warning = advice.about_accumulation(node, value)
        if warning is not None:
            ignored = getattr(self.p.settings, "ignore_warnings", ())
            exc.warn(warning.at(self.scope.source.at(node)), ignored)
        if isinstance(target, ast.Name):
            before = self.eval(ast.copy_location(ast.Name(target.id, ast.Load()), target))
            result = self._updated(node, before, value)
            self.scope.set(target.id, result)
        elif isinstance(target, ast.Subscript):
            load = ast.Subscript(target.value, target.slice, ast.Load())
            before = self.eval(ast.copy_location(load, target))
            self._store(target, self._updated(node, before, value))
        else:
            raise exc.InvalidAssignment().at(self.scope.source.at(target))

    def _updated(self, node: ast.AugAssign, before: Any, value: Any) -> Any:
        if isinstance(before, HostTensor) and before.tensor.dim():
            raise exc.CannotModifyHostVariableOnDevice(before.name)
        return operators.binary(self.p, type(node.op), before, value)

    # -- branches ---------------------------------------------------------------------------------

    def _if(self, node: ast.If, after: Names) -> bool:
        test = operators.truth(self.p, self.eval(node.test))
        if isinstance(test, bool):
            return self.block(node.body if test else node.orelse, after)
        returns = _returns(node)
        names = [n for n in assigned_names([*node.body, *node.orelse]) if n in after]
        if returns:
            names = [RETURN]
        self._branch(
            test.value,
            names,
            lambda: self._arm(node.body, after, returns),
            lambda: self._arm(node.orelse, after, returns),
        )
        return returns

    def _arm(self, statements: Sequence[ast.stmt], after: Names, returns: bool) -> None:
        if not self.block(statements, after) and returns:
            self.scope.names[RETURN] = None

    def _branch(
        self,
        condition: Value,
        names: Sequence[str],
        then: Callable[[], None],
        otherwise: Callable[[], None],
    ) -> None:
        """Both arms, and what names mean behind them."""
        restore = self.p.checkpoint()
        specs: dict[str, carried.Spec] | None = None
        before = dict(self.scope.names)
        for _ in range(4):
            try:
                merged, results, ends = self._try_branch(condition, names, specs, then, otherwise)
                break
            except carried.Retry as retry:
                restore()
                self.scope.names = dict(before)
                specs = retry.named
        else:
            raise exc.CantCombineTypesInControlFlow(", ".join(names), "this", "that")
        self.scope.names = {n: v for n, v in before.items() if all(end.get(n) is v for end in ends)}
        values = iter(results)
        for name, spec in merged.items():
            self.scope.names[name] = carried.build(spec, values)

    def _try_branch(
        self,
        condition: Value,
        names: Sequence[str],
        specs: Mapping[str, carried.Spec] | None,
        then: Callable[[], None],
        otherwise: Callable[[], None],
    ) -> tuple[dict[str, carried.Spec], list[Value], list[dict[str, Any]]]:
        before = dict(self.scope.names)
        branch = self.p.b.if_(condition)
        found: list[dict[str, carried.Spec]] = []
        ends: list[dict[str, Any]] = []
        first: dict[str, carried.Spec] = {}
        for number, (arm, run) in enumerate(((branch.then, then), (branch.otherwise, otherwise))):
            self.scope.names = dict(before)
            with arm(), self.p.region():
                run()
                mine = {
                    n: carried.spec_of(self.scope.names[n], constants=True)
                    for n in names
                    if n in self.scope.names
                }
                found.append(mine)
                ends.append(self.scope.names)
                if number == 0:
                    first = mine if specs is None else dict(specs)
                else:
                    self._check_arms(found, first)
                branch.finish(
                    [
                        v
                        for n, s in first.items()
                        for v in carried.emit(self.p, self.scope.names[n], s)
                    ]
                )
        return first, branch.results, ends

    def _check_arms(
        self, found: list[dict[str, carried.Spec]], first: dict[str, carried.Spec]
    ) -> None:
        """Retry with the kinds that both arms can give, where they give other ones."""
        both = {n: s for n, s in found[0].items() if n in found[1]}
        joint = {n: carried.unify(self.p, n, s, found[1][n]) for n, s in both.items()}
        same = joint.keys() == first.keys() and all(s.same(first[n]) for n, s in joint.items())
        if not same:
            raise carried.Retry(named=joint)

    # -- while ------------------------------------------------------------------------------------

    def _while(self, node: ast.While, after: Names) -> None:
        if node.orelse:
            raise exc.DeviceLoopElseBlock("while")
        for _ in range(_MOST_ROUNDS):
            restore = self.p.checkpoint()
            test = operators.truth(self.p, self.eval(node.test))
            if not isinstance(test, bool):
                restore()
                break
            if not test:
                return
            self.block(node.body, loop_entry(node, after))
        else:
            raise exc.TypeInferenceError("a while loop that does not end while it is traced")
        entry = loop_entry(node, after)
        names = self.carried_names(node, after)

        def run(specs: Sequence[carried.Spec], initial: list[Value]) -> list[Value]:
            loop = self.p.b.while_(initial)
            with loop.condition() as region, self.p.region():
                self._bind(names, specs, region.args)
                proceed = operators.truth(self.p, self.eval(node.test))
                loop.finish([self.p.value(proceed)])
            with loop.body() as region, self.p.region():
                self._bind(names, specs, region.args)
                self.block(node.body, entry)
                loop.finish(self._carried(names, specs))
            return loop.results

        self.loop(node.body, names, run)

    # -- what loops carry -------------------------------------------------------------------------

    def carried_names(self, node: ast.For | ast.While, after: Names) -> list[str]:
        """Names that a round takes over from the one before."""
        entry = loop_entry(node, after)
        return [n for n in assigned_names(node.body) if self.scope.knows(n) and n in entry]

    def loop(
        self,
        body: Sequence[ast.stmt],
        names: Sequence[str],
        run: Callable[[Sequence[carried.Spec], list[Value]], list[Value]],
    ) -> None:
        """One loop: `run` traces it with variables of some kinds; again where these do not fit."""
        p, before = self.p, dict(self.scope.names)
        specs = [carried.spec_of(before[n]) for n in names]
        for _ in range(5):
            restore = p.checkpoint()
            initial = [
                v for n, s in zip(names, specs, strict=True) for v in carried.emit(p, before[n], s)
            ]
            try:
                results = iter(run(specs, initial))
                break
            except carried.Retry as retry:
                restore()
                self.scope.names = dict(before)
                specs = retry.specs
        else:
            raise exc.CantCombineTypesInControlFlow(", ".join(names), "one round", "another")
        changed = set(assigned_names(list(body)))
        self.scope.names = {n: v for n, v in before.items() if n not in changed}
        for name, spec in zip(names, specs, strict=True):
            self.scope.names[name] = carried.build(spec, results)

    def _bind(self, names: Sequence[str], specs: Sequence[carried.Spec], args: list[Value]) -> None:
        values = iter(args)
        for name, spec in zip(names, specs, strict=True):
            self.scope.names[name] = carried.build(spec, values)

    def _carried(self, names: Sequence[str], specs: Sequence[carried.Spec]) -> list[Value]:
        """What a round gives to the next one; raises Retry."""
        values = [self.scope.get(n) for n in names]
        carried.checked(self.p, names, specs, [carried.spec_of(v) for v in values])
        return [
            v
            for value, s in zip(values, specs, strict=True)
            for v in carried.emit(self.p, value, s)
        ]

    # -- functions --------------------------------------------------------------------------------

    def inline(self, fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A Python function, executed by its tree."""
        cells: dict[str, Any] = {}
        if isinstance(fn, Function):
            cells, fn = dict(fn.cells), fn.fn
        source = source_of(fn.__code__)
        if source is None:
            raise exc.InvalidAPIUsage(f"the source of {fn.__name__} cannot be read")
        if fn.__closure__ and not cells:
            for name, cell in zip(fn.__code__.co_freevars, fn.__closure__, strict=True):
                cells[name] = cell.cell_contents
        try:
            bound = inspect.signature(fn).bind(*args, **kwargs)
        except TypeError as error:
            raise exc.TypeInferenceError(f"{fn.__name__}: {error}") from None
        bound.apply_defaults()
        if self.depth > 50:
            raise exc.TypeInferenceError(f"{fn.__name__} calls itself without end")
        return self.in_scope(source, fn.__globals__, cells, dict(bound.arguments))

    def in_scope(
        self,
        source: Source,
        space: Mapping[str, Any],
        cells: Mapping[str, Any],
        names: dict[str, Any],
    ) -> Any:
        outer = self.scope
        self.scope = Scope(source, space, lifted=self.p.global_of, cells=cells, names=names)
        self.depth += 1
        try:
            self.block(source.body, frozenset())
            return self.scope.names.get(RETURN)
        finally:
            self.scope = outer
            self.depth -= 1

    def is_static(self, *values: Any) -> bool:
        return not holds(list(values), (*DEVICE, Function))


def _returns(node: ast.If) -> bool:
    return any(isinstance(n, ast.Return) for s in (*node.body, *node.orelse) for n in _own(s))


def _own(node: ast.AST) -> list[ast.AST]:
    """A statement and what is in it, functions of their own left out."""
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        return []
    return [node, *(inner for child in ast.iter_child_nodes(node) for inner in _own(child))]


def _with_rest(node: ast.If, rest: list[ast.stmt]) -> ast.If:
    """The statement with what follows it in the arms that do not return."""
    body = node.body if _ends(node.body) else [*node.body, *rest]
    orelse = node.orelse if node.orelse and _ends(node.orelse) else [*node.orelse, *rest]
    return ast.copy_location(ast.If(node.test, body, orelse), node)


def _ends(statements: Sequence[ast.stmt]) -> bool:
    last = statements[-1]
    if isinstance(last, ast.Return):
        return True
    return (
        isinstance(last, ast.If) and bool(last.orelse) and _ends(last.body) and _ends(last.orelse)
    )
