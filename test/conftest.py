"""Fixtures of all tests: private cache folders, a fixed seed, no state left for the next test."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

# Before torch is imported: nothing of a user's caches is read or changed. Worker processes inherit
# the variables, so that all of them share one folder and what one compiled the others find.
_FOLDER_VARIABLE = "_TORCH_HELION_TEST_FOLDER"
_owner = _FOLDER_VARIABLE not in os.environ
if _owner:
    os.environ[_FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="torch_helion_test_")
_folder = os.environ[_FOLDER_VARIABLE]
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(_folder, "inductor")
os.environ["TORCH_HELION_CACHE_DIR"] = os.path.join(_folder, "helion")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _owner and not hasattr(session.config, "workerinput"):
        shutil.rmtree(_folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """A seed before each test; after it, no compiled code, tuned config or thread count is left."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    if torch:
        torch.manual_seed(0)
    yield
    torch = sys.modules.get("torch")
    if torch and threads and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    if results := sys.modules.get("torch_helion.autotuner.results"):
        results.forget()
        shutil.rmtree(os.path.join(_folder, "helion", results.KIND), ignore_errors=True)
    if dynamo := sys.modules.get("torch._dynamo"):
        dynamo.reset()


@pytest.fixture
def strict() -> Iterator[None]:
    """Errors of the backend are raised, not turned into fallbacks."""
    from torch_helion import settings

    with settings.patch(strict=True):
        yield
