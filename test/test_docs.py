"""The pages that say so run, block by block; links between pages lead somewhere."""

from __future__ import annotations

import pathlib
import re

import pytest

import torch_helion as helion
from test.doc_blocks import DOCS, run_blocks
from torch_helion import exc
from torch_helion.language import names as language_names

PROMISE = re.compile(r"(?i)the\s+blocks\s+of\s+this\s+page\s+run\s+as\s+a\s+test")
ELSEWHERE = {"weights.md"}  # test/weights/test_docs.py
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")

PAGES = sorted(
    page.name
    for page in DOCS.glob("*.md")
    if PROMISE.search(page.read_text()) and page.name not in ELSEWHERE
)


def test_the_pages_are_found() -> None:
    assert {"extending.md", "language.md", "language-reference.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(
    page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_blocks((DOCS / page).read_text(), page)


def test_the_reference_has_every_name() -> None:
    page = (DOCS / "language-reference.md").read_text()
    names = [f"hl.{n}" for n in language_names.__all__] + [f"helion.{n}" for n in helion.__all__]
    missing = [n for n in names if not re.search(rf"`{re.escape(n)}\b", page)]
    assert not missing


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text()
    gone = [link for link in LINK.findall(text) if not (DOCS / link).exists()]
    assert gone == []


def test_error_classes_exist() -> None:
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"`exc\.([A-Z]\w+)`", page.read_text()):
            assert hasattr(exc, name), f"{page.name}: exc.{name}"
