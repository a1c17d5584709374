"""The fenced blocks of README.md, of docs/ and of the pages and docstrings made into pages."""

import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import docs_site

ROOT = docs_site.ROOT

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its path, below the repository for README.md and below docs/ for all others.
        line: of its opening fence, counted from 1.
        language: what stands after the fence.
        title: of the file that it shows, or nothing.
        text: without the fences and their indentation.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def place(self):
        return f"{self.page}, line {self.line}"


def find_blocks(page, markdown):
    """The blocks of a page from top to bottom."""
    blocks = []
    for found in _FENCE.finditer(markdown):
        title = re.search(r'title="([^"]*)"', found["rest"])
        indent = len(found["indent"])
        text = "".join(line[indent:] for line in found["text"].splitlines(keepends=True))
        line = markdown.count("\n", 0, found.start()) + 1
        blocks.append(Block(page, line, found["language"], title[1] if title else "", text))
    return blocks


@cache
def all_pages():
    """Every page's Markdown by path, as mkdocs sees it: insertions are in their places."""
    written = {
        path.relative_to(ROOT / "docs").as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "docs").rglob("*.md"))
    }
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {"README.md": readme, **written, **docs_site.generated_pages()}
    return {path: docs_site.with_insertions(text) for path, text in pages.items()}


@cache
def all_blocks():
    """Every page's blocks by path."""
    return {page: find_blocks(page, text) for page, text in all_pages().items()}
