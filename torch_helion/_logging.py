"""Loggers by artefact, warnings said once, and stage dumps.

What flows in: messages and the texts of compilation stages. What flows out: records of the standard
loggers ``torch_helion.<artefact>``, and numbered files under ``TORCH_HELION_DUMP``. Floor 0:
anything may import this module; it imports only ``settings`` and ``exc``.

``TORCH_HELION_LOGS=capture,+code,-launch`` turns artefacts on: ``x`` at INFO, ``+x`` at DEBUG,
``-x`` at ERROR only; ``all`` stands for every artefact; later words win. Without it nothing below
WARNING is printed. The names are ordinary module loggers, so ``TORCH_LOGS=+torch_helion`` works as
well, and records then go through torch's handler.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import pathlib
import re
import threading
from collections.abc import Callable, Iterator

from torch_helion import exc, settings

ROOT = "torch_helion"
ARTEFACTS: dict[str, str] = {
    "capture": "graphs, regions taken and refused, fallbacks with their reason",
    "fusion": "what each pattern or grower matched and why it declined",
    "ir": "tile IR of each kernel as built",
    "passes": "tile IR after each pass, with times",
    "code": "generated code",
    "config": "the chosen config of each kernel",
    "tune": "searches: candidates, times, rejections",
    "cache": "artifact cache: hits, misses, evictions",
    "launch": "calls of kernels: grid, threads",
}
_FORMAT = "%(levelname).1s %(asctime)s %(name)s: %(message)s"


def get_logger(artefact: str) -> logging.Logger:
    """The logger of one artefact; a wrong name raises. Cheap: call it at module level."""
    if artefact not in ARTEFACTS:
        raise exc.invalid_option("log artefact", artefact, ARTEFACTS)
    _configure_from_environment()
    return logging.getLogger(f"{ROOT}.{artefact}")


def levels_of(spec: str) -> dict[str, int]:
    """``"+all,-launch"`` → level of each named artefact; unknown names raise ``InvalidOption``."""
    levels: dict[str, int] = {}
    for word in filter(None, (w.strip() for w in spec.split(","))):
        sign, name = (word[0], word[1:]) if word[0] in "+-" else ("", word)
        level = {"": logging.INFO, "+": logging.DEBUG, "-": logging.ERROR}[sign]
        if name != "all" and name not in ARTEFACTS:
            raise exc.invalid_option("log artefact", name, ["all", *ARTEFACTS])
        levels |= dict.fromkeys(ARTEFACTS if name == "all" else [name], level)
    return levels


def configure(spec: str) -> None:
    """Set the levels of ``spec`` (the rest back to default) and print them on standard error."""
    levels = levels_of(spec)
    for artefact in ARTEFACTS:
        logger = logging.getLogger(f"{ROOT}.{artefact}")
        logger.setLevel(levels.get(artefact, logging.NOTSET))
    root = logging.getLogger(ROOT)
    if levels and _handler not in root.handlers:
        root.addHandler(_handler)
    elif not levels and _handler in root.handlers:
        root.removeHandler(_handler)


def warn_once(logger: logging.Logger, key: object, message: str, *args: object) -> None:
    """``logger.warning`` the first time this ``key`` comes; later calls say it at DEBUG."""
    with _lock:
        first = (logger.name, key) not in _warned
        _warned.add((logger.name, key))
    logger.log(logging.WARNING if first else logging.DEBUG, message, *args, stacklevel=2)


@contextlib.contextmanager
def dump_scope(name: str) -> Iterator[None]:
    """Stages dumped inside go to a folder of this name (nested scopes: nested folders)."""
    token = _scope.set((*_scope.get(), _file_name(name)))
    try:
        yield
    finally:
        _scope.reset(token)


def dump(stage: str, text: str | Callable[[], str]) -> pathlib.Path | None:
    """Write one stage as ``NN_stage.ext`` in the current scope's folder, if a dump is asked for.

    ``stage`` may carry the extension (``"kernel.ll"``; default ``.txt``). ``text`` may be a
    function, so that printing costs nothing when no dump is asked for. Call it *before* the stage's
    result is used: a dump of the stage that failed is the one that is needed. A folder that cannot
    be written is a warning.
    """
    base = settings.current().dump
    if not base:
        return None
    folder = pathlib.Path(base, *_scope.get())
    stem, extension = os.path.splitext(_file_name(stage))
    with _lock:
        number = _numbers.get(folder, 0)
        _numbers[folder] = number + 1
    path = folder / f"{number:02d}_{stem}{extension or '.txt'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text() if callable(text) else text)
    except OSError as error:
        warn_once(logging.getLogger(ROOT), ("dump", base), "cannot write stage dumps: %s", error)
        return None
    return path


class _OwnHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints on standard error, unless torch's own logging already prints the same records."""

    def emit(self, record: logging.LogRecord) -> None:
        if all(h is self for h in logging.getLogger(ROOT).handlers):
            super().emit(record)


_handler = _OwnHandler()
_handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
_lock = threading.Lock()
_warned: set[tuple[str, object]] = set()
_numbers: dict[pathlib.Path, int] = {}
_scope: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar(
    "torch_helion_dump_scope", default=()
)
_configured = False


def _configure_from_environment() -> None:
    """Once, at the first logger: only this one variable is read, the other settings stay unread."""
    global _configured
    if _configured:
        return
    _configured = True
    spec = settings.flag("LOGS")
    try:
        if spec:
            configure(spec)
    except exc.InvalidOption as error:
        logging.getLogger(ROOT).warning("%s: %s", settings.env_name("logs"), error)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", name)[:80].strip(".") or "stage"
