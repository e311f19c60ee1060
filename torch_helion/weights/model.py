"""Weights into live models, in place; and models that exist before their weights.

What flows in: a model (or a function that makes one) and a checkpoint. What flows out: the same
model with its parameters and buffers filled. Everything that can be wrong with names and shapes is
found from the headers, said at once, and changes nothing. Compiled code that holds the parameters
stays valid, since they keep their memory.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from torch_helion.weights import manifest as manifests
from torch_helion.weights import staging
from torch_helion.weights.dtypes import torch_dtype, torch_shape
from torch_helion.weights.errors import WeightsError
from torch_helion.weights.load import Plan, Verify, Wanted, read_tensors, run_jobs, want
from torch_helion.weights.memory import Arena, bytes_of, padded
from torch_helion.weights.reading import Job, Piece, plan_jobs
from torch_helion.weights.source import Source
from torch_helion.weights.write import identity, state_of

Result = tuple[list[str], list[str]]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def load_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    strict: bool = True,
    device: str | torch.device | int | None = None,
    *,
    assign: bool = False,
    verify: Verify = None,
    wait: bool = True,
    plan: Plan | None = None,
    threads: int | None = None,
) -> Any:
    """Fill a model's parameters and buffers from a checkpoint; returns (missing, unexpected).

    The bytes go straight into the parameters' memory where dtype and layout agree, else they are
    copied (and cast) as PyTorch does. ``assign=True`` puts new tensors of the file's dtype in their
    place instead. ``device`` moves the model there first. A verified load reads everything before
    it changes anything. ``wait=False`` returns a :class:`LoadHandle` when the headers have been
    checked; its ``result()`` waits for the data. ``plan`` gives the slice of each tensor that this
    rank's smaller parameters hold.
    """
    if device is not None:
        _move(model, torch.device(device))
    source = Source(path)
    try:
        expected = manifests.expected_for(source, verify)
        match = _Match(model, source, plan)
        match.refuse(strict)
        if not assign:
            match.refuse_meta()
    except BaseException:
        source.close()
        raise

    def work() -> Result:
        with source:
            if assign:
                _assign(model, match, threads, expected)
            else:
                _fill(match, threads, expected)
        return match.missing, match.unexpected

    return work() if wait else LoadHandle(work)


class LoadHandle:
    """A load that goes on in the background."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._value: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="weights-load")
        self._thread.start()

    def done(self) -> bool:
        """Whether ``result()`` would return at once."""
        return not self._thread.is_alive()

    def result(self, timeout: float | None = None) -> Result:
        """Wait; (missing, unexpected), or the error of the load."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError("the weights are still being loaded")
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value

    def _run(self, work: Callable[[], Result]) -> None:
        try:
            self._value = work()
        except BaseException as error:  # raised by result()
            self._error = error


def meta_model(
    factory: Callable[[], AnyModule],
    path: str | os.PathLike[str],
    strict: bool = True,
    device: str | torch.device | int = "cpu",
) -> AnyModule:
    """A model whose parameters have the file's shapes and dtypes, and memory, but no values yet.

    ``factory()`` builds it without allocating parameters; buffers are computed as usual (many are
    in no file). Then each parameter gets memory that costs nothing until it is filled. The model
    can be compiled; :func:`load_model` fills it in place. Do not measure kernels on its untouched
    memory: all of it is one page of zeros.
    """
    where = torch.device(device)
    with Source(path) as source:
        with _parameters_on_meta():
            model = factory()
        match = _Match(model, source, None)
        match.refuse(strict)
        dtypes = {
            id(p): want(source.tensors[match.source_of[name]]).dtype
            for name, p in match.state.items()
            if name in match.source_of and p.is_meta
        }
    _give_memory(model, dtypes, where)
    return model


# ---------------------------------------------------------------------- names and shapes


class Fill(NamedTuple):
    """One tensor of the model, and what fills it."""

    name: str
    target: torch.Tensor
    wanted: Wanted


class _Match:
    """Which tensor of the file fills which of the model; everything that does not fit."""

    def __init__(self, model: nn.Module, source: Source, plan: Plan | None) -> None:
        self.source = source
        self.state = state_of(model)
        self.source_of: dict[str, str] = {}
        aliases = source.metadata
        held: dict[tuple[object, ...], str] = {}
        for name, tensor in self.state.items():
            if name in source.tensors:
                self.source_of[name] = name
                if key := identity(tensor):
                    held.setdefault(key, name)
        self.missing = []
        optional = _optional(model)
        for name in model.state_dict(keep_vars=True):
            own = self.state.get(name)
            if name in self.source_of or name in optional:
                continue
            if own is not None and identity(own) in held:
                continue  # tied: filled under its other name
            if own is not None and aliases.get(name) in source.tensors:
                self.source_of[name] = aliases[name]  # was tied when it was saved
                continue
            self.missing.append(name)
        used = set(self.source_of.values())
        self.unexpected = [name for name in source.tensors if name not in used]
        self.fills: list[Fill] = []
        self.misshaped: list[str] = []
        self._compare_shapes(plan or {})

    def _compare_shapes(self, plan: Plan) -> None:
        filled: set[tuple[object, ...]] = set()
        for name, origin in self.source_of.items():
            stored, target = self.source.tensors[origin], self.state[name]
            shape = torch_shape(stored.info.dtype, stored.info.shape, stored.file.path, origin)
            index = plan.get(origin)
            wanted = want(stored, index) if index is not None else None
            found = wanted.shape if wanted is not None else shape
            if nn.parameter.is_lazy(target):
                self.misshaped.append(f"{name}: file {list(shape)}, model not initialised")
            elif tuple(target.shape) != tuple(found):
                self.misshaped.append(f"{name}: file {list(found)}, model {list(target.shape)}")
            else:
                torch_dtype(stored.info.dtype, stored.file.path, origin)
                key = identity(target)
                if key is None or key not in filled:
                    self.fills.append(Fill(name, target, wanted or want(stored)))
                filled.add(key or ())

    def refuse(self, strict: bool) -> None:
        """Raise with the whole list if anything that matters does not fit."""
        faults = []
        if strict and self.missing:
            faults.append(f"missing in the file: {', '.join(self.missing)}")
        if strict and self.unexpected:
            faults.append(f"unexpected in the file: {', '.join(self.unexpected)}")
        if self.misshaped:
            faults.append(f"other shapes: {'; '.join(self.misshaped)}")
        if faults:
            raise WeightsError("does not fit the model. " + ". ".join(faults), self.source.path)

    def refuse_meta(self) -> None:
        if meta := [fill.name for fill in self.fills if fill.target.is_meta]:
            raise WeightsError(
                f"the model has no memory for {', '.join(meta[:20])} (meta tensors): make it with "
                "meta_model, or pass device= or assign=True",
                self.source.path,
            )


def _optional(model: nn.Module) -> set[str]:
    """Buffers that PyTorch itself fills in when a file of an old version lacks them."""
    return {
        f"{prefix}.num_batches_tracked".lstrip(".")
        for prefix, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
    }


# ---------------------------------------------------------------------- filling


def _fill(match: _Match, threads: int | None, expected: manifests.Expected | None) -> None:
    direct = [f for f in match.fills if expected is None and _is_direct(f)]
    chosen = {id(f.target) for f in direct}
    rest = [f for f in match.fills if id(f.target) not in chosen]
    for device in {f.target.device for f in direct}:
        _read_into([f for f in direct if f.target.device == device], device, threads)
    # Everything is read, and compared if asked for, before the first of these is changed.
    loaded = _read(match, rest, torch.device("cpu"), threads, expected)
    with torch.no_grad():
        for fill in rest:
            fill.target.copy_(loaded[fill.wanted.name])
    for fill in match.fills:
        if not fill.target.is_inference():
            torch.autograd.graph.increment_version(fill.target)


def _read(
    match: _Match,
    fills: list[Fill],
    device: torch.device,
    threads: int | None,
    expected: manifests.Expected | None,
) -> dict[str, torch.Tensor]:
    """What fills these tensors, each name once, in the order of the files."""
    wanted = {f.wanted.name: f.wanted for f in fills}
    ordered = sorted(wanted.values(), key=lambda w: (w.stored.file.path, w.stored.info.begin))
    return read_tensors(match.source, ordered, device, threads, expected)


def _is_direct(fill: Fill) -> bool:
    """Whether the file's bytes are the very bytes of the parameter's memory."""
    t = fill.target
    return (
        fill.wanted.selection is None
        and t.dtype == fill.wanted.dtype
        and t.layout == torch.strided
        and t.is_contiguous()
        and t.numel() > 0
        and type(t) in (torch.Tensor, nn.Parameter, nn.Buffer)
        and (t.device.type == "cpu" or staging.ops_for(t.device) is not None)
        and not (t.is_conj() or t.is_neg())
    )


def _read_into(fills: list[Fill], device: torch.device, threads: int | None) -> None:
    ops = staging.ops_for(device)
    pieces: dict[int, list[Piece]] = {}
    files: dict[int, Any] = {}
    for fill in sorted(fills, key=lambda f: f.wanted.stored.info.begin):
        stored = fill.wanted.stored
        flat = fill.target.detach().as_strided((fill.target.numel(),), (1,)).view(torch.uint8)
        target = bytes_of(flat) if ops is None else flat
        files[id(stored.file)] = stored.file
        here = pieces.setdefault(id(stored.file), [])
        here.append(Piece(stored.position, target, stored.info.nbytes))
    jobs: list[Job] = []
    for key, file in files.items():
        jobs += plan_jobs(file, pieces[key])
    run_jobs(jobs, threads, ops)


def _assign(
    model: nn.Module,
    match: _Match,
    threads: int | None,
    expected: manifests.Expected | None,
) -> None:
    """New tensors in the place of the old ones, which stay as they are; ties stay ties."""
    by_device: dict[torch.device, list[Fill]] = {}
    for fill in match.fills:
        where = torch.device("cpu") if fill.target.is_meta else fill.target.device
        by_device.setdefault(where, []).append(fill)
    new: dict[int, torch.Tensor] = {}
    for device, fills in by_device.items():
        loaded = _read(match, fills, device, threads, expected)
        for fill in fills:
            new[id(fill.target)] = _like(fill.target, loaded[fill.wanted.name])
    _replace(model, new)


def _replace(model: nn.Module, new: dict[int, torch.Tensor]) -> None:
    """Put new parameters and buffers in the place of old ones, known by their ids."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None and id(old) in new:
                    table[name] = new[id(old)]  # type: ignore[assignment]


def _like(old: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(old, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=old.requires_grad)


# ---------------------------------------------------------------------- memory before values


class _parameters_on_meta:
    """While a factory runs in this thread, each parameter that is registered becomes meta."""

    def __enter__(self) -> None:
        owner = threading.get_ident()
        made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}

        def hook(module: nn.Module, name: str, param: nn.Parameter | None) -> Any:
            if param is None or threading.get_ident() != owner or nn.parameter.is_lazy(param):
                return None
            if param.is_meta:
                return None
            if id(param) not in made:  # tied ones stay tied; the old one is kept, so ids are unique
                made[id(param)] = (param, nn.Parameter(param.to("meta"), param.requires_grad))
            return made[id(param)][1]

        self._hook = nn.modules.module.register_module_parameter_registration_hook(hook)

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def _give_memory(model: nn.Module, dtypes: dict[int, torch.dtype], device: torch.device) -> None:
    """Each meta parameter gets memory (one arena on the host); other tensors move there."""
    metas = {id(p): p for p in model.parameters() if p.is_meta}
    for buffer in model.buffers():
        if buffer.is_meta:
            metas[id(buffer)] = buffer  # type: ignore[assignment]
    arena = None
    if device.type == "cpu":
        sizes = [p.numel() * dtypes.get(i, p.dtype).itemsize for i, p in metas.items()]
        arena = Arena(sum(map(padded, sizes)))
    new: dict[int, torch.Tensor] = {}
    for i, p in metas.items():
        new[i] = _like(p, _memory(arena, dtypes.get(i, p.dtype), tuple(p.shape), device))
    _replace(model, new)
    if device.type != "cpu":
        model.to(device)


def _memory(
    arena: Arena | None, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    if arena is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return arena.tensor(arena.take(math.prod(shape) * dtype.itemsize), dtype, shape)


def _move(model: nn.Module, device: torch.device) -> None:
    """To a device; what has no values yet only gets memory."""
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        _give_memory(model, {}, device)
    model.to(device)
