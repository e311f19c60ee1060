"""Pages of fresh memory: brought in by the thread that is about to fill them, in one call.

What flows in: regions of memory for which huge pages were asked, and views that will be written.
What flows out: pages that are there. A copy that takes a fault every 4 KiB is slower than the
faults themselves, so they are taken before it, without Python's lock. Huge pages are the fastest,
but not on every machine: where a virtual machine gives free memory back to its host, each huge page
is fetched from there again, at three times the cost of small pages. So their cost is measured as
they come, and a region whose huge pages are slow goes on with small ones.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
_POPULATE_WRITE = 23  # of Linux 5.14; not in Python's module yet
_SMALLEST = 256 << 10  # below this a call costs as much as the faults
_SLOW = 0.4e-9  # seconds per byte; huge pages take 0.1, small ones 0.3, fetched ones 1 and more


@dataclass
class _Region:
    begin: int
    end: int
    huge: bool = True


Advise = Callable[[int, int, int], int]
_regions: weakref.WeakKeyDictionary[mmap.mmap, _Region] = weakref.WeakKeyDictionary()
_advise: Advise | None = None
_can_populate = hasattr(mmap, "MADV_HUGEPAGE")  # Linux


def ask_for_huge(mapping: mmap.mmap, begin: int, size: int) -> None:
    """Huge pages for all of an anonymous mapping that lies at this address."""
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # another system, or a kernel without them
        return
    _regions[mapping] = _Region(begin, begin + size)


def prefault(view: memoryview) -> None:
    """Bring in the pages of a writable view that is about to be written wholly."""
    global _can_populate
    if len(view) < _SMALLEST or not _can_populate:
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    begin = address // PAGE * PAGE
    size = -(-(address + len(view) - begin) // PAGE) * PAGE
    began = time.thread_time()  # what other threads use meanwhile does not count
    if _call(begin, size, _POPULATE_WRITE) == errno.EINVAL:
        _can_populate = False
        return
    if size >= HUGE_PAGE and time.thread_time() - began > _SLOW * size:
        _give_up_huge(begin)


def _give_up_huge(address: int) -> None:
    for region in list(_regions.values()):
        if region.huge and region.begin <= address < region.end:
            region.huge = False
            start = -(-region.begin // PAGE) * PAGE
            _call(start, region.end - start, mmap.MADV_NOHUGEPAGE)


def _call(begin: int, size: int, advice: int) -> int:
    """``madvise``, without Python's lock; the error's number."""
    global _advise
    if _advise is None:
        library = ctypes.CDLL(None, use_errno=True)
        library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        _advise = library.madvise
    assert os.name == "posix"
    return ctypes.get_errno() if _advise(begin, size, advice) else 0
