"""Which nodes are tensors: what torch's rebuild functions would have made, checked.

What flows in: nodes, and the storages that the container has. What flows out: :class:`StoredTensor`
records whose every element lies inside of its storage, or the reason why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torch_helion.weights.convert.nodes import Call, DictNode, Global, Persistent
from torch_helion.weights.dtypes import NAME_OF
from torch_helion.weights.header import MAX_INT, MAX_RANK


class Storage(NamedTuple):
    """Bytes of the container."""

    key: str
    offset: int
    nbytes: int


class StoredTensor(NamedTuple):
    """A view of a storage; counts in elements of ``dtype``."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conj: bool = False
    neg: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether its bytes in the storage are its bytes in row-major order."""
        step = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and stride != step:
                return self.nbytes == 0
            step *= n
        return not (self.conj or self.neg)


class Lost(NamedTuple):
    """A tensor that cannot be written, and why."""

    why: str


# Where a storage of the container lies: (key, number of bytes that the pickle declares).
FindStorage = Callable[[str, int], Storage | Lost]

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "BFloat16": torch.bfloat16,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_UNTYPED = "UntypedStorage"
_LOST = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no data",
    "_rebuild_wrapper_subclass": "a wrapper subclass, which has no data of its own",
    "_rebuild_device_tensor_from_numpy": "a tensor kept as a numpy array",
}
_LARGE = 64 << 20
_MOST_REPEATS = 64


class Resolver:
    """Recognises tensors among nodes."""

    def __init__(self, find_storage: FindStorage) -> None:
        self._find = find_storage

    def resolve(self, node: Any, depth: int = 0) -> StoredTensor | Lost | None:
        """A tensor, the reason why it is lost, or None: not a tensor at all."""
        if not isinstance(node, Call) or not isinstance(node.function, Global) or depth > 8:
            return None
        module, name = node.function.module, node.function.name
        args = node.args if type(node.args) is tuple else ()
        if module == "torch._utils":
            if name in _LOST:
                return Lost(_LOST[name])
            if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
                return self._inner(args, depth)
            if name == "_rebuild_device_tensor_from_cpu_tensor":
                return self._inner(args, depth)
            if name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
                return self._rebuilt(name, args)
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2") and len(args) == 4:
            return self.resolve(Call(args[0], args[2]), depth + 1) or Lost("an unknown subclass")
        if (module, name) == ("torch.nn.parameter", "Parameter") and args:
            return self._inner(args, depth)
        return None

    def _inner(self, args: tuple[Any, ...], depth: int) -> StoredTensor | Lost:
        return (self.resolve(args[0], depth + 1) if args else None) or Lost("no tensor inside")

    def _rebuilt(self, name: str, args: tuple[Any, ...]) -> StoredTensor | Lost:
        dtype: torch.dtype | None = None
        metadata = None
        if name.endswith("v3"):
            if len(args) < 7 or (dtype := _dtype(args[6])) is None:
                return Lost("a dtype that this torch does not know")
            metadata = args[7] if len(args) > 7 else None
        elif name.endswith("v2"):
            metadata = args[6] if len(args) > 6 else None
        if len(args) < 4:
            return Lost("a malformed tensor: too few arguments")
        reference = args[0]
        conj, neg, odd = _flags(metadata)
        if odd:
            return Lost(odd)
        return self._view(reference, dtype, args[1], args[2], args[3])._with(conj, neg)

    def _view(self, reference: Any, dtype: Any, offset: Any, shape: Any, strides: Any) -> _Outcome:
        found = self._storage(reference, dtype)
        if isinstance(found, Lost):
            return _Outcome(found)
        storage, dtype = found
        shape, strides = _plain_ints(shape), _plain_ints(strides)
        if shape is None or strides is None or len(shape) != len(strides) or len(shape) > MAX_RANK:
            return _Outcome(Lost("a malformed tensor: its sizes and strides"))
        if type(offset) is not int or not 0 <= offset <= MAX_INT:
            return _Outcome(Lost("a malformed tensor: its offset"))
        if why := _out_of_bounds(storage, dtype, offset, shape, strides):
            return _Outcome(Lost(why))
        if dtype not in NAME_OF:
            return _Outcome(Lost(f"{dtype}, for which the format has no dtype"))
        return _Outcome(StoredTensor(storage, dtype, offset, shape, strides))

    def _storage(self, node: Any, dtype: Any) -> tuple[Storage, torch.dtype] | Lost:
        parts = node.id if isinstance(node, Persistent) and type(node.id) is tuple else ()
        if len(parts) not in (5, 6) or parts[0] != "storage" or not isinstance(parts[1], Global):
            return Lost("a malformed tensor: no storage")
        kind, key, count = parts[1], parts[2], parts[4]
        if type(key) not in (str, int) or type(count) is not int or not 0 <= count <= MAX_INT:
            return Lost("a malformed tensor: its storage's key or size")
        itemsize = 1
        if kind.name != _UNTYPED or kind.module not in _STORAGE_MODULES:
            own = _STORAGES.get(kind.name.removesuffix("Storage"))
            if kind.module not in _STORAGE_MODULES or own is None:
                return Lost(f"an unknown kind of storage: {kind}")
            dtype, itemsize = dtype or own, own.itemsize
        dtype = dtype or torch.uint8
        view = parts[5] if len(parts) == 6 else None
        return self._placed(str(key), count, itemsize, dtype, view)

    def _placed(
        self, key: str, count: int, itemsize: int, dtype: torch.dtype, view: Any
    ) -> tuple[Storage, torch.dtype] | Lost:
        found = self._find(key, count * itemsize)
        if isinstance(found, Lost) or view is None:
            return found if isinstance(found, Lost) else (found, dtype)
        # The oldest files keep views of storages: (key of the view, offset, size), in elements.
        ints = _plain_ints(view[1:]) if type(view) is tuple and len(view) == 3 else None
        if ints is None or sum(ints) > count:
            return Lost("a malformed tensor: the view of its storage")
        begin, size = ints[0] * itemsize, ints[1] * itemsize
        return Storage(found.key, found.offset + begin, size), dtype


class _Outcome(NamedTuple):
    value: StoredTensor | Lost

    def _with(self, conj: bool, neg: bool) -> StoredTensor | Lost:
        found = self.value
        return found if isinstance(found, Lost) else found._replace(conj=conj, neg=neg)


def _dtype(node: Any) -> torch.dtype | None:
    """A dtype by its name; only dtypes are ever taken from torch."""
    if not isinstance(node, Global) or node.module != "torch":
        return None
    found = vars(torch).get(node.name)
    return found if isinstance(found, torch.dtype) else None


def _flags(metadata: Any) -> tuple[bool, bool, str]:
    """Conjugate bit, negative bit, and what else there is that would change values."""
    if metadata is None or (isinstance(metadata, DictNode) and not metadata.pairs):
        return False, False, ""
    if not isinstance(metadata, DictNode):
        return False, False, "a malformed tensor: its metadata"
    known = {"conj", "neg"}
    odd = [k for k, _ in metadata.pairs if k not in known]
    return (
        metadata.get("conj") is True,
        metadata.get("neg") is True,
        f"unknown metadata {odd[0]!r}" if odd else "",
    )


def _plain_ints(node: Any) -> tuple[int, ...] | None:
    """A tuple of non-negative ints (a torch.Size, too)."""
    if isinstance(node, Call) and str(node.function) == "torch.Size" and type(node.args) is tuple:
        node = node.args[0] if len(node.args) == 1 else None
    if type(node) not in (tuple, list):
        return None
    good = all(type(n) is int and 0 <= n <= MAX_INT for n in node)
    return tuple(node) if good else None


def _out_of_bounds(
    storage: Storage,
    dtype: torch.dtype,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> str | None:
    if math.prod(n or 1 for n in shape) * dtype.itemsize * 8 > MAX_INT:
        return "its size overflows"
    if 0 in shape:
        return None
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if (last + 1) * dtype.itemsize > storage.nbytes:
        return f"reaches element {last} of a storage of {storage.nbytes} bytes"
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > _LARGE and nbytes > _MOST_REPEATS * storage.nbytes:
        return f"repeats {storage.nbytes} bytes of its storage to {nbytes}"
    return None
