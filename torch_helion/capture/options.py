"""``mode`` and ``options`` of one ``torch.compile`` call, validated and split.

What flows in: what the user wrote. What flows out: a :class:`Request`: changes of our settings and
patches of Inductor's configuration. A wrong name or value raises here, before anything is compiled;
torch itself checks neither for a backend that is not its own.

An option is named ``helion.<setting>`` or plainly ``<setting>`` (any field of
:class:`torch_helion.settings.Switches`); every other name must be one of Inductor's.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch_helion import exc, settings
from torch_helion.capture import inductor_compat as inductor

PREFIX = "helion."
MODES = (
    "default",
    "reduce-overhead",
    "max-autotune",
    "max-autotune-no-cudagraphs",
    "lite",
)
# Settings that change neither code nor results: they stay out of cache keys.
_WITHOUT_EFFECT_ON_CODE = frozenset({"logs", "dump", "cache_dir", "cache_limit_mb"})


@dataclass(frozen=True)
class Request:
    """What one compilation was asked for."""

    mode: str = "default"
    settings: settings.Switches = field(default_factory=settings.current)
    """the settings in force, changed by the options: they also hold for a backward graph, which is
    compiled later and outside of any context"""
    host: Mapping[str, Any] = field(default_factory=dict)
    """patches of Inductor's configuration: those of the mode, then the user's own"""

    @property
    def key(self) -> str:
        """What of this request changes generated code, for cache keys."""
        values = {
            name: getattr(self.settings, name)
            for name in settings.fields()
            if name not in _WITHOUT_EFFECT_ON_CODE
        }
        return repr(sorted(values.items()))


def read(
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    unknown: Mapping[str, Any] | None = None,
) -> Request:
    """The request that these arguments of the backend make; raises ``exc.InvalidOption``."""
    for name in unknown or ():
        raise exc.invalid_option("argument of the backend", name, ("mode", "options"))
    mode = mode or "default"
    if mode not in MODES:
        raise exc.invalid_option("mode", mode, MODES)
    ours: dict[str, Any] = {}
    host: dict[str, Any] = dict(inductor.mode_options(mode))
    for name, value in (options or {}).items():
        setting = _setting_name(name)
        if setting is not None:
            ours[setting] = value
        else:
            host[_host_name(name)] = _host_value(name, value)
    return Request(mode, settings.current().replace(**ours), host)


def _setting_name(name: str) -> str | None:
    """The setting that an option means; None if it is one of Inductor's."""
    plain = name.removeprefix(PREFIX)
    if plain in settings.fields():
        return plain
    if plain != name:
        known = [PREFIX + field for field in settings.fields()]
        raise exc.invalid_option("option", name, known)
    return None


def _host_name(name: str) -> str:
    key = name.replace("-", "_")
    if key in inductor.option_names():
        return key
    ours = [*settings.fields(), *map(PREFIX.__add__, settings.fields())]
    known = [*ours, *inductor.option_names()]
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in known], n=1, cutoff=0.7)
    # without a likely one: our few names, not the host's many
    raise exc.invalid_option("option", name, known if near else ours)


def _host_value(name: str, value: Any) -> Any:
    kind = inductor.option_type(name.replace("-", "_"))
    if kind is None or typing.get_origin(kind) is not None or isinstance(value, kind):
        return value
    raise exc.InvalidValue(f"option {name}", value, f"a value of type {kind.__name__}")
