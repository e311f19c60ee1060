"""One search for all processes of a distributed job.

In: a search that every rank is about to run, and what its result belongs to. Out: its result, from
whichever rank came first; the others wait for it. The ranks meet at the store that they were
started with, not in a collective operation: a rank that never calls the kernel keeps nobody
waiting, and the order of searches may differ. Kinds of machines search for themselves.
"""

from __future__ import annotations

import collections
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed

from torch_helion import _logging, exc
from torch_helion.autotuner import results
from torch_helion.autotuner.results import KernelId
from torch_helion.autotuner.search import BaseSearch, Result
from torch_helion.config import Config

log = _logging.get_logger("tune")

PREFIX = "torch_helion/tune"
GRACE = 60.0
"""Seconds beyond a search's own that the others wait: it may begin by starting its processes."""
LONGEST = 600.0
"""of waiting for a search without a deadline"""
POLL = 0.05

_turns: collections.Counter[str] = collections.Counter()
"""Searches until now, by what they were for: the nth of one rank is the nth of all."""


def run(search: BaseSearch, kernel: KernelId | None, sizes: tuple[int, ...]) -> Result:
    """Run a search in one of the ranks; its result. Without ``kernel`` each rank runs its own."""
    store = _store() if kernel is not None else None
    if store is None or kernel is None:
        return _run_here(search)
    key = _key(kernel, sizes)
    if store.add(f"{key}/claim", 1) > 1:
        return _wait(search, store, key)
    said = ""
    try:
        found = _run_here(search)
        said = json.dumps(to_json(found))
    finally:
        store.set(key, said)  # also where it failed: nobody shall wait for nothing
    return found


def _run_here(search: BaseSearch) -> Result:
    search.autotune()
    assert search.result is not None
    return search.result


def _wait(search: BaseSearch, store: Any, key: str) -> Result:
    deadline = time.monotonic() + min(3 * search.budget + GRACE, LONGEST)
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise exc.NoResultFromRank("has not answered")
        time.sleep(POLL)
    said = store.get(key)
    if not said:
        raise exc.NoResultFromRank("has failed")
    search.result = from_json(json.loads(said))
    log.info("%s: %s, found by another rank", search.problem.name, search.result.config)
    return search.result


def _store() -> Any:
    """Where the ranks meet; None: this process is alone."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() < 2:
        return None
    default = getattr(torch.distributed.distributed_c10d, "_get_default_store", None)
    return torch.distributed.PrefixStore(PREFIX, default()) if default is not None else None


def _key(kernel: KernelId, sizes: tuple[int, ...]) -> str:
    what = repr((kernel, sizes, results.machine_class()))
    _turns[what] += 1
    return hashlib.sha256(f"{what}\0{_turns[what]}".encode()).hexdigest()


# ---------------------------------------------------------------------- results as text


def to_json(found: Result) -> dict[str, Any]:
    """A result as the ranks exchange it."""
    return {
        "config": dict(found.config.config),
        "seconds": found.seconds,
        "default_seconds": found.default_seconds,
        "tried": found.tried,
        "rejected": [[dict(c.config), why] for c, why in found.rejected],
        "noise": found.noise,
        "interrupted": found.interrupted,
    }


def from_json(values: Mapping[str, Any]) -> Result:
    """What :func:`to_json` was given."""
    rejected = tuple((Config.from_dict(c), str(why)) for c, why in values["rejected"])
    return Result(**{**values, "config": Config.from_dict(values["config"]), "rejected": rejected})
