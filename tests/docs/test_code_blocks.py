"""Every block of README.md and of the documentation is run, or is on a short list with a reason.

The blocks are run offline and as they stand, with tiny stand-ins under the names that they use
(`stand_ins.py`), a Hub on the loopback, and flags behind the commands that train or measure, which
end them soon (`page_run.py`: `SHORTENED`). No pictures are drawn, and latencies are of three
rounds. What needs more than seconds is run by `make slow`.
"""

import re
import shutil
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT, all_blocks, all_pages
from page_run import SHORTENED, PageRun
from stand_ins import be_brief, save_all, save_successor

sys.path.append(str(ROOT / "tests" / "hub"))

from loopback import loopback

from kdnlp.losses import LOSSES
from kdnlp.trainers import cached

NOT_RUN = {
    ("README.md", "make demo "): "makes an environment from a package index, then runs the suite",
    ("README.md", "pip install ."): "installs from a package index",
    ("tutorials/recipe.md", "accelerate launch"): "starts a process a GPU; tests/distributed does",
    ("recipes.md", "accelerate launch"): "starts processes under FSDP2; tests/distributed does",
    (
        "glue.md",
        "python -m benchmarks.glue",
    ): "takes hours; tests/benchmarks runs small ones",
}
"""The beginning of each block that is not run, and why."""

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

SHOWN = {"text": "commands/", "bibtex": "methods/losses/"}
"""Languages of blocks that are output or a citation, and the only pages where they may stand."""

FAST = ["README.md", "tutorials/trainer.md", "tutorials/hub.md"]
"""Pages that are run by the default suite."""

SLOW = [
    "index.md",
    "recipes.md",
    "tutorials/recipe.md",
    *(f"methods/{path.name}" for path in sorted((ROOT / "docs" / "methods").glob("[!i]*.md"))),
    *(f"methods/losses/{name}.md" for name in LOSSES),
]
"""Pages that are run by `make slow`."""


BEGIN_WITH_SUCCESSOR = ["tutorials/hub.md"]
"""Pages about what `kdnlp theseus` has left."""


def runs(block):
    """Whether a block is to be run."""
    exempt = any(block.page == page and block.text.startswith(s) for page, s in NOT_RUN)
    return block.language not in SHOWN and not exempt


def every_block():
    """The blocks of all pages."""
    return [block for blocks in all_blocks().values() for block in blocks]


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory):
    """A folder with everything that the blocks name; pages work on a copy."""
    folder = tmp_path_factory.mktemp("stand-ins")
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch, folder / "datasets")
        patch.chdir(folder)
        save_all(folder, SHORTENED["finetune"])
    return folder


@pytest.fixture
def page_run(stand_ins, tmp_path, monkeypatch):
    """A page's run, in a folder of its own with the stand-ins."""
    folder = tmp_path / "work"
    shutil.copytree(stand_ins, folder, symlinks=True)
    (tmp_path / "bin").mkdir()
    be_brief(monkeypatch, tmp_path / "datasets")
    monkeypatch.setattr(cached, "DEFAULT_FOLDER", tmp_path / "teacher-outputs")
    monkeypatch.chdir(folder)
    with loopback(monkeypatch, tmp_path, owners=("your-name",)):
        yield PageRun(folder, tmp_path / "bin")


@pytest.mark.parametrize("page", [*FAST, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
@pytest.mark.filterwarnings(
    # A reader's script leaves it to torch, which says so on a machine without a GPU.
    "ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"
)
def test_the_blocks_of_a_page_run_one_after_the_other(page, page_run):
    wanted = [block for block in all_blocks()[page] if runs(block)]
    if page in BEGIN_WITH_SUCCESSOR:
        save_successor(SHORTENED["theseus"])
    for block in wanted:
        page_run.run(block)
    assert page_run.ran == wanted


def test_every_page_with_blocks_is_run():
    assert {block.page for block in every_block() if runs(block)} == {*FAST, *SLOW}


def test_what_is_not_run_is_still_there_and_short():
    for page, start in NOT_RUN:
        blocks = [block for block in all_blocks()[page] if block.text.startswith(start)]
        assert len(blocks) == 1, f"{page} has {len(blocks)} blocks that start with {start!r}"
        assert len(blocks[0].text.splitlines()) <= 3
        made = set(re.findall(r"^make (\w+)", blocks[0].text, re.MULTILINE))
        assert made <= set(re.findall(r"^(\w+):", MAKEFILE, re.MULTILINE))


def test_no_block_escapes_by_its_fence():
    for block in every_block():
        assert block.language in ("python", "diff", "sh", "yaml", "csv", *SHOWN), block.place
        where = SHOWN.get(block.language, "")
        assert block.page.startswith(where), f"{block.place}: {block.language} stands in {where}"
    for page, text in all_pages().items():
        plain = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert "```" not in plain, f"{page}: a fence that does not end"
        assert not re.search(r"^ *~~~|<pre|<code|^(?: {4}|\t)(?![-*|:o ])", plain, re.MULTILINE), (
            page
        )


def test_all_that_the_blocks_write_is_in_their_folder():
    for block in (block for block in every_block() if block.language == "sh"):
        for folder in re.findall(r"--(?:output_dir|output) (\S+)", block.text):
            assert not Path(folder).is_absolute(), block.place
            assert ".." not in folder, block.place
