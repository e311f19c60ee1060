"""The one error of this package: a file that cannot be trusted, and why.

What flows in: the file, the tensor (where one is at fault) and the broken rule. What flows out: an
exception whose text names all three. Any module of the package may import this one.
"""

from __future__ import annotations

import os


class WeightsError(ValueError):
    """A weight file, index, manifest or checkpoint breaks a rule; nothing of it was used."""

    def __init__(
        self, rule: str, file: str | os.PathLike[str] | None = None, tensor: str | None = None
    ) -> None:
        super().__init__(rule, file, tensor)
        self.rule = rule
        self.file = None if file is None else os.fspath(file)
        self.tensor = tensor

    def __str__(self) -> str:
        words = [] if self.file is None else [self.file]
        if self.tensor is not None:
            words.append(f"tensor {quoted(self.tensor)}")
        return ": ".join([*words, self.rule])


def quoted(name: object, longest: int = 120) -> str:
    """A name from a file, fit for a terminal: escaped, cut in the middle if it is very long."""
    if isinstance(name, str) and len(name) > longest:
        name = f"{name[: longest // 2]}…{name[-longest // 3 :]}"
    return ascii(name) if not isinstance(name, str) or not name.isprintable() else repr(name)


def listed(names: list[str], most: int = 20) -> str:
    """``'a', 'b' and 3 more``."""
    text = ", ".join(quoted(name) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
