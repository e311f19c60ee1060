"""A kernel's function cut in two: host code that stays ordinary Python, and the device loops.

In: the user's function. Out: `HostFunction`: the host part as a function in which one call stands
in the place of the loops, and the syntax trees of the loops for `trace`.
"""

from __future__ import annotations

import ast
import builtins
import copy
import dataclasses
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch_helion import exc
from torch_helion.frontend.helpers import (
    Global,
    data_globals,
    is_data,
    is_users,
    plain_function,
)
from torch_helion.frontend.source import (
    MISSING,
    Source,
    assigned_names,
    place_in,
    read_names,
    source_of,
    static_value,
)
from torch_helion.language import context, loops
from torch_helion.language.context import HostRun

LAUNCH = "__torch_helion_launch__"
FACTORY = "__torch_helion_factory__"
OPTIONAL = "__torch_helion_optional__"
SPACES = "__torch_helion_spaces__"


class Unset:
    """What stands for a host variable that was never assigned."""

    def __repr__(self) -> str:
        return "<unset>"


UNSET = Unset()


@dataclasses.dataclass(eq=False)
class HostFunction:
    """The two halves of one kernel."""

    fn: types.FunctionType
    source: Source
    loops: list[ast.For]
    """the device loops, in order"""
    barriers: frozenset[int]
    """numbers of loops that stand behind a barrier"""
    values: tuple[str, ...]
    """names of the host variables and globals that the device part reads"""
    host_names: frozenset[str]
    """every name that the host part defines"""
    prologue: list[ast.stmt]
    epilogue: list[ast.stmt]
    lifted: Mapping[tuple[int, str], str]
    """values that functions called on the device read from modules, by module and name"""
    calls_language: bool
    """whether the host part may call functions of the language"""
    _factory: Callable[..., Any]
    told: set[tuple[str, int, str]] = dataclasses.field(default_factory=set)
    """warnings that have been given: class, line, operation"""
    _local: threading.local = dataclasses.field(default_factory=threading.local)

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def signature(self) -> Any:
        import inspect

        return inspect.signature(self.fn)

    @property
    def registers(self) -> bool:
        """Whether what the host part does may depend on the config."""
        names = {"register_block_size", "register_tunable"}
        walked = (n for s in (*self.prologue, *self.epilogue) for n in ast.walk(s))
        return any(getattr(n, "attr", getattr(n, "id", None)) in names for n in walked)

    @property
    def last_run(self) -> HostRun:
        """The last run of the host part in this thread: what it has registered."""
        return getattr(self._local, "run", None) or HostRun()

    def with_launch(
        self,
        launch: Callable[..., Any],
        choices: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    ) -> Callable[..., Any]:
        """The host part as a function that calls `launch(*values)` where the loops stood.

        `choices`: the values of a config, for what the host part registers (or a function that
        gives them, called once).
        """
        fn = self._factory(launch, _optional)
        fn.__defaults__, fn.__kwdefaults__ = self.fn.__defaults__, self.fn.__kwdefaults__
        fn.__qualname__, fn.__module__ = self.fn.__qualname__, self.fn.__module__
        if not self.calls_language:
            return fn
        known: list[Mapping[str, Any]] = []

        def host(*args: Any, **kwargs: Any) -> Any:
            if not known:
                given = choices() if callable(choices) else choices
                known.append(dict(given or {}))
            run = self._local.run = HostRun(known[0])
            try:
                with context.running(run):
                    return fn(*args, **kwargs)
            except exc.Base as error:
                if error.location is None:
                    error.at(_place_of(error, self.source.file))
                raise

        return host


def _place_of(error: exc.Base, file: str) -> exc.SourceLocation | None:
    """The expression of a file from which an error came (Python 3.11 and later: its columns)."""
    found, entry = None, error.__traceback__
    while entry is not None:
        code = entry.tb_frame.f_code
        if code.co_filename == file:
            found = place_in(code, entry.tb_lasti, entry.tb_lineno)
        entry = entry.tb_next
    return found


def _optional(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except NameError:
        return UNSET


def split(fn: types.FunctionType) -> HostFunction:
    """Cut a kernel's function in two. Errors of structure quote the user's line."""
    source = source_of(fn.__code__)
    if source is None or not isinstance(source.node, ast.FunctionDef):
        raise exc.InvalidAPIUsage(f"the source of {fn.__name__} cannot be read")
    return _Splitter(fn, source).split()


class _Splitter:
    def __init__(self, fn: types.FunctionType, source: Source) -> None:
        self.fn, self.source = fn, source
        self.space: dict[str, Any] = {**vars(builtins), **fn.__globals__}
        self.body: list[ast.stmt] = source.body
        node: Any = source.node
        arguments = node.args
        self.parameters = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]

    def split(self) -> HostFunction:
        self._check_names()
        places = [i for i, s in enumerate(self.body) if self._is_device_loop(s)]
        for i, statement in enumerate(self.body):
            if i not in places:
                self._check_host_statement(statement)
        if not places:
            raise exc.NoDeviceLoopsInKernel().at(self.source.at(self._headline()))
        first, last = places[0], places[-1]
        barriers = self._between(first, last)
        device = [s for s in self.body[first : last + 1] if isinstance(s, ast.For)]
        prologue, epilogue = self.body[:first], self.body[last + 1 :]
        host_names = {*self.parameters, *assigned_names(prologue), *assigned_names(epilogue)}
        self._check_rebinding(device, {*self.parameters, *assigned_names(prologue)})
        self._check_reads(device, epilogue, host_names)
        items = _Items()
        device = [items.taken_out(loop) for loop in device]
        values = self._values(device, prologue)
        lifted = {g.key: g for g in self._lifted(device, prologue)}
        given = [f"{SPACES}[{n}][{g.name!r}]" for n, g in enumerate(lifted.values())]
        given += items.found.values()
        spaces = tuple(g.space for g in lifted.values())
        factory = self._compile(prologue, epilogue, values, given, spaces, device[0])
        host = [*prologue, *epilogue]
        return HostFunction(
            self.fn,
            self.source,
            device,
            frozenset(barriers),
            (*values, *(f"{n} {g.path}" for n, g in enumerate(lifted.values())), *items.found),
            frozenset(host_names),
            prologue,
            epilogue,
            {key: f"{n} {g.path}" for n, (key, g) in enumerate(lifted.items())},
            self._calls_language(host),
            factory,
        )

    def _headline(self) -> ast.AST:
        node = self.source.node
        return ast.Pass(
            lineno=node.lineno, col_offset=node.col_offset, end_lineno=None, end_col_offset=None
        )

    # -- what stands where ------------------------------------------------------------------------

    def _called(self, node: ast.AST) -> Any:
        """The function that an expression calls, as far as globals tell."""
        return static_value(node.func, self.space) if isinstance(node, ast.Call) else MISSING

    def _is_device_loop(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.For):
            return False
        called = self._called(node.iter)
        if called in (loops.jagged_tile, loops.static_range):
            if called is loops.jagged_tile:
                raise exc.InvalidJaggedTileUsage("it cannot be the outermost loop").at(
                    self.source.at(node.iter)
                )
            return False
        return called in (loops.tile, loops.grid)

    def _check_host_statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            return
        for node in ast.walk(statement):
            if self._is_device_loop(node):
                assert isinstance(node, ast.For)
                raise exc.NestedGridLoop().at(self.source.at(node.iter))
            if self._called(node) in (loops.tile, loops.grid, loops.jagged_tile):
                name = getattr(self._called(node), "__name__", "tile")
                raise exc.LoopFunctionNotInFor(f"hl.{name}").at(self.source.at(node))

    def _is_barrier(self, statement: ast.stmt) -> bool:
        return isinstance(statement, ast.Expr) and self._called(statement.value) is loops.barrier

    def _between(self, first: int, last: int) -> list[int]:
        """Numbers of the loops that have a barrier in front of them."""
        barriers, count, waiting = [], 0, False
        for statement in self.body[first : last + 1]:
            if self._is_device_loop(statement):
                if waiting:
                    barriers.append(count)
                count, waiting = count + 1, False
            elif self._is_barrier(statement):
                waiting = True
            else:
                raise exc.TopLevelStatementBetweenLoops().at(self.source.at(statement))
        return barriers

    def _calls_language(self, statements: list[ast.stmt]) -> bool:
        """Whether host code calls the language, or Python functions that might."""
        for statement in statements:
            for node in ast.walk(statement):
                called = self._called(node)
                module = getattr(called, "__module__", None) or ""
                if isinstance(called, types.FunctionType) and not module.startswith("torch."):
                    return True
                if isinstance(node, ast.FunctionDef | ast.Lambda):
                    return True
        return False

    # -- names ------------------------------------------------------------------------------------

    def _check_names(self) -> None:
        for name in (*self.parameters, *assigned_names(self.body)):
            if name in (LAUNCH, FACTORY, OPTIONAL, SPACES):
                raise exc.NamingConflict(name).at(self.source.at(self._headline()))
        for node in ast.walk(self.source.node):
            if isinstance(node, ast.Global):
                raise exc.GlobalMutation(", ".join(node.names)).at(self.source.at(node))
            if isinstance(node, ast.Nonlocal):
                raise exc.ClosureMutation(", ".join(node.names)).at(self.source.at(node))

    def _check_rebinding(self, device: list[ast.For], host: set[str]) -> None:
        for loop in device:
            hidden = set(assigned_names([loop]))
            for node in ast.walk(loop):
                stores = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                if stores and node.id in host & hidden:  # type: ignore[attr-defined]
                    error = exc.CannotModifyHostVariableOnDevice(node.id)  # type: ignore[attr-defined]
                    raise error.at(self.source.at(node))

    def _check_reads(self, device: list[ast.For], epilogue: list[ast.stmt], host: set[str]) -> None:
        only = set(assigned_names(list(device))) - host
        for statement in epilogue:
            for node in ast.walk(statement):
                reads = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
                if reads and node.id in only:  # type: ignore[attr-defined]
                    error = exc.CannotReadDeviceVariableOnHost(node.id)  # type: ignore[attr-defined]
                    raise error.at(self.source.at(node))

    def _local(self, prologue: list[ast.stmt]) -> set[str]:
        """Names that the host part gives a value."""
        local = {*self.parameters, *assigned_names(prologue)}
        for statement in prologue:
            for node in ast.walk(statement):
                if isinstance(node, ast.FunctionDef):
                    local.add(node.name)
        return local

    def _values(self, device: list[ast.For], prologue: list[ast.stmt]) -> list[str]:
        """Names that the device part reads and that a launch must hand over."""
        local, found = self._local(prologue), []
        for name in read_names(list(device)):
            if name in local or (name in self.fn.__globals__ and is_data(self.space[name])):
                found.append(name)
        return found

    def _lifted(self, device: list[ast.For], prologue: list[ast.stmt]) -> Iterator[Global]:
        """What functions that the device part calls read from modules, and what it reads itself."""
        local = {*self._local(prologue), *assigned_names(list(device))}
        for node in (n for loop in device for n in ast.walk(loop)):
            if not isinstance(node, ast.Name | ast.Attribute):
                continue
            if any(isinstance(n, ast.Name) and n.id in local for n in ast.walk(node)):
                continue
            found = static_value(node, self.fn.__globals__)
            fn = plain_function(found)
            if fn is not None:
                yield from data_globals(fn)
            elif isinstance(node, ast.Attribute) and is_data(found):
                owner = static_value(node.value, self.fn.__globals__)
                if isinstance(owner, types.ModuleType) and is_users(owner):
                    yield Global(ast.unparse(node), vars(owner), node.attr)

    # -- the host part ----------------------------------------------------------------------------

    def _compile(
        self,
        prologue: list[ast.stmt],
        epilogue: list[ast.stmt],
        values: list[str],
        more: Sequence[str],
        spaces: tuple[Mapping[str, Any], ...],
        at: ast.For,
    ) -> Callable[..., Any]:
        sure = {*self.parameters, *(n for n in values if n in self.fn.__globals__)}
        for statement in prologue:
            if not isinstance(statement, ast.If | ast.For | ast.While | ast.Try | ast.With):
                sure |= set(assigned_names([statement]))
                if isinstance(statement, ast.FunctionDef):
                    sure.add(statement.name)
        given = [n if n in sure else f"{OPTIONAL}(lambda: {n})" for n in values]
        call = ast.parse(f"{LAUNCH}({', '.join([*given, *more])})").body[0]
        for node in ast.walk(call):
            ast.copy_location(node, at)
            if hasattr(node, "end_lineno"):
                node.end_lineno, node.end_col_offset = at.lineno, at.col_offset + 1  # type: ignore[attr-defined]
        function: Any = copy.copy(self.source.node)
        function.body = [*prologue, call, *epilogue]
        function.decorator_list, function.returns = [], None
        function.args = _bare(function.args)
        outer: Any = ast.parse(f"def {FACTORY}({LAUNCH}, {OPTIONAL}, {SPACES}): pass").body[0]
        result = ast.parse(f"return {function.name}").body[0]
        outer.body = [function, result]
        module = ast.Module([outer], [])
        ast.fix_missing_locations(module)
        code = compile(module, self.source.file, "exec")
        made = next(c for c in code.co_consts if isinstance(c, types.CodeType))
        factory = types.FunctionType(made, self.fn.__globals__, FACTORY)
        return lambda launch, optional: factory(launch, optional, spaces)


class _Items(ast.NodeTransformer):
    """Takes `x.item()` out of ranges of top-level loops: the host knows it before the launch."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        """texts of expressions, by what stands for them"""

    def taken_out(self, loop: ast.For) -> ast.For:
        """The loop; a copy of it where its range has such calls."""
        if not any(map(_is_item, ast.walk(loop.iter))):
            return loop
        changed = copy.copy(loop)
        changed.iter = self.visit(copy.deepcopy(loop.iter))
        return changed

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not _is_item(node):
            return self.generic_visit(node)
        name = f"{len(self.found)} item"
        self.found[name] = ast.unparse(node)
        return ast.copy_location(ast.Name(name, ast.Load()), node)


def _is_item(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "item"


def _bare(arguments: ast.arguments) -> ast.arguments:
    """Parameters without annotations and defaults (the latter are set on the function)."""
    bare = copy.deepcopy(arguments)
    for argument in (*bare.posonlyargs, *bare.args, *bare.kwonlyargs):
        argument.annotation = None
    bare.defaults = []
    bare.kw_defaults = [None for _ in bare.kwonlyargs]
    return bare
