"""Names for the tensors of a checkpoint: those that ``state_dict`` would give.

What flows in: the root node. What flows out: tensors by dotted name, everything that was passed
over and everything that was lost, by name. Containers may share nodes or hold themselves, so the
walk is bounded by what it visits and by its depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch_helion.weights.convert.nodes import Call, DictNode, Global, Persistent, SetNode
from torch_helion.weights.convert.tensors import Lost, Resolver, StoredTensor
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.header import MAX_NAME, METADATA

MAX_VISITS = 1_000_000
MAX_DEPTH = 200
_LISTED = 8  # plain values of one list that are named one by one
_DICTS = {"OrderedDict", "defaultdict", "Counter", "dict"}
_SCALARS = (int, float, str, bytes, bool, type(None))


@dataclass
class Found:
    """The outcome of a walk."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)


class Walk:
    """One walk over a checkpoint."""

    def __init__(self, resolver: Resolver, file: str) -> None:
        self.resolver = resolver
        self.file = file
        self.found = Found()
        self._visits = 0
        self._path: set[int] = set()

    def run(self, root: Any) -> Found:
        self._visit(root, (), 0)
        return self.found

    # -------------------------------------------------------------- nodes

    def _visit(self, node: Any, path: tuple[str, ...], depth: int) -> None:
        self._visits += 1
        if self._visits > MAX_VISITS or depth > MAX_DEPTH:
            raise WeightsError("its containers are nested too deeply or too widely", self.file)
        if isinstance(node, _SCALARS):
            self._skip(path, type(node).__name__)
            return
        if id(node) in self._path:
            self._skip(path, "a container that holds itself")
            return
        self._path.add(id(node))
        try:
            self._visit_object(node, path, depth)
        finally:
            self._path.discard(id(node))

    def _visit_object(self, node: Any, path: tuple[str, ...], depth: int) -> None:
        outcome = self.resolver.resolve(node)
        if isinstance(outcome, StoredTensor):
            self._keep(path, outcome)
        elif isinstance(outcome, Lost):
            self._lose(path, outcome.why)
        elif isinstance(node, DictNode):
            self._visit_pairs(node.pairs, path, depth)
        elif isinstance(node, list | tuple):
            self._visit_items(list(node), path, depth)
        elif isinstance(node, SetNode):
            self._visit_items(node.items, path, depth)
        elif isinstance(node, Call):
            self._visit_call(node, path, depth)
        elif isinstance(node, Persistent):
            self._skip(path, "a storage without a tensor")
        else:
            self._skip(
                path, f"the name {node}" if isinstance(node, Global) else "an unknown object"
            )

    def _visit_pairs(self, pairs: list[tuple[Any, Any]], path: tuple[str, ...], depth: int) -> None:
        last = {self._key(key): value for key, value in pairs}  # as in a dict, the last one stays
        for key, value in last.items():
            if key is None:
                self._visit(value, (*path, "<key>"), depth + 1)
            else:
                self._visit(value, (*path, key), depth + 1)

    def _visit_items(self, items: list[Any], path: tuple[str, ...], depth: int) -> None:
        plain = all(isinstance(item, _SCALARS) for item in items)
        if plain and len(items) > _LISTED:
            self._skip(path, f"{len(items)} plain values")
            return
        for place, item in enumerate(items):
            self._visit(item, (*path, str(place)), depth + 1)

    def _key(self, key: Any) -> str | None:
        return str(key) if type(key) in (str, int, bool) else None

    # -------------------------------------------------------------- objects

    def _visit_call(self, node: Call, path: tuple[str, ...], depth: int) -> None:
        state = node.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], DictNode):
            own = state[0].pairs if isinstance(state[0], DictNode) else []
            state = DictNode([*own, *state[1].pairs])  # an object with slots
        if isinstance(state, DictNode) and state.get("_modules") is not None:
            self._visit_module(state, path, depth)
            return
        known = isinstance(node.function, Global) and node.function.module == "collections"
        if known and node.function.name in _DICTS:
            self._visit_pairs([*_first_pairs(node.args), *node.pairs], path, depth)
            return
        inside = sum(1 for _ in self._tensors_in(node.args))
        words = str(_class_of(node)) + (
            f" with {inside} tensors in its arguments" if inside else ""
        )
        (self._lose if inside else self._skip)(path, words)
        if isinstance(state, DictNode):
            self._visit_pairs(state.pairs, path, depth)
        elif state is not None:
            self._visit(state, (*path, "<state>"), depth + 1)
        self._visit_pairs(node.pairs, path, depth)
        if node.items:
            self._visit_items(node.items, path, depth)

    def _visit_module(self, state: DictNode, path: tuple[str, ...], depth: int) -> None:
        """A whole ``torch.nn.Module``: parameters, buffers that persist, modules inside."""
        passing = {k for k in _keys_of(state.get("_non_persistent_buffers_set")) if type(k) is str}
        for table in ("_parameters", "_buffers", "_modules"):
            for key, value in _pairs_of(state.get(table)):
                name = self._key(key)
                if value is None or name is None:
                    continue
                if table == "_buffers" and name in passing:
                    self._skip((*path, name), "a buffer that is not persistent")
                else:
                    self._visit(value, (*path, name), depth + 1)
        for key, value in state.pairs:
            if isinstance(self.resolver.resolve(value), StoredTensor | Lost):
                self._skip((*path, str(key)), "a tensor that is no parameter or buffer")

    def _tensors_in(self, node: Any) -> Iterator[StoredTensor | Lost]:
        """Tensors among the arguments of an unknown call, each once."""
        pending, seen = [node], set()
        while pending:
            item = pending.pop()
            if id(item) in seen or isinstance(item, _SCALARS):
                continue
            seen.add(id(item))
            if (outcome := self.resolver.resolve(item)) is not None:
                yield outcome
            elif isinstance(item, list | tuple):
                pending += item
            elif isinstance(item, DictNode):
                pending += [part for pair in item.pairs for part in pair]
            elif isinstance(item, Call):
                pending += [item.args, item.state, item.items, item.pairs]

    # -------------------------------------------------------------- outcomes

    def _keep(self, path: tuple[str, ...], tensor: StoredTensor) -> None:
        name = ".".join(path) or "tensor"
        if why := _why_no_name(name, path):
            self._lose(path, why)
        elif name in self.found.tensors:
            raise WeightsError("two tensors of the checkpoint have this name", self.file, name)
        else:
            self.found.tensors[name] = tensor

    def _skip(self, path: tuple[str, ...], what: str) -> None:
        self.found.skipped.append((".".join(path) or "<root>", what))

    def _lose(self, path: tuple[str, ...], why: str) -> None:
        self.found.lost.append((".".join(path) or "<root>", why))


def _class_of(node: Call) -> str:
    """``<object package.Class>`` where a call only makes an object, else ``<call ...>``."""
    rebuilt = isinstance(node.function, Global) and node.function.module in ("copyreg", "copy_reg")
    if rebuilt and type(node.args) is tuple and node.args and isinstance(node.args[0], Global):
        return f"<object {node.args[0]}>"
    return f"<object {node.function}>" if node.state is not None else str(node)


def _why_no_name(name: str, path: tuple[str, ...]) -> str | None:
    if "<key>" in path:
        return "its key in a dict is neither text nor a number"
    if len(name) > MAX_NAME or name == METADATA or not all(path):
        return "the format has no such name"
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name):
        return "its name holds control characters"
    return None


def _pairs_of(node: Any) -> list[tuple[Any, Any]]:
    """The items of a dict or an OrderedDict, the last one of each key."""
    if isinstance(node, DictNode):
        pairs = node.pairs
    elif isinstance(node, Call):
        pairs = [*_first_pairs(node.args), *node.pairs]
    else:
        return []
    return list({k if type(k) in (str, int) else id(k): (k, v) for k, v in pairs}.values())


def _first_pairs(args: Any) -> list[tuple[Any, Any]]:
    """The items that a dict class got as an argument: a dict, or a list of pairs."""
    first = args[-1] if type(args) is tuple and args else None
    if isinstance(first, DictNode):
        return first.pairs
    if type(first) is list:
        return [tuple(p) for p in first if type(p) in (list, tuple) and len(p) == 2]  # type: ignore[misc]
    return []


def _keys_of(node: Any) -> list[Any]:
    if isinstance(node, SetNode):
        return node.items
    if isinstance(node, Call) and type(node.args) is tuple and node.args:
        first = node.args[0]
        return list(first) if type(first) in (list, tuple) else []
    return []
