"""The site is built without a warning, and has a place for every loss, command and public name."""

import json
import re
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT, all_pages
from mkdocs.commands.build import build
from mkdocs.config import load_config

import kdnlp
from kdnlp.cli import COMMANDS
from kdnlp.losses import LOSSES
from kdnlp.losses.overview import cite

sys.path.append(str(ROOT / "tools"))

import docs_losses
from docs_insertions import docstring_text, values_table
from docs_site import generated_pages, with_insertions


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning would have stopped it, as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


def test_every_page_is_built_and_found_by_the_search(site):
    pages = {path.removesuffix(".md") for path in all_pages() if path != "README.md"}
    assert {p.relative_to(site).as_posix() for p in site.rglob("*.html")} - {"404.html"} == {
        f"{page}.html" for page in pages
    }
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert {entry["location"].partition("#")[0] for entry in index["docs"]} >= {
        f"{page}.html" for page in pages - {"index"}
    }


def test_nothing_is_fetched_from_a_network(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|iframe|link(?=[^>]*stylesheet))[^>]*(?:src|href)=\"?(https?:)?//",
            page.read_text(encoding="utf-8"),
        )
        assert not fetched, page


def test_the_api_promises_no_way_to_compress_that_there_is_not():
    names = [path.stem for path in Path(kdnlp.__file__).parent.rglob("*.py")]
    page = generated_pages()["api/compression.md"].lower()
    for way in ("prun", "quantiz", "export", "search"):
        assert way not in page or any(way in name for name in names), way


def test_every_public_name_is_described_once(site):
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    for name in set(kdnlp.__all__) - {"__version__"}:
        assert text.count(f'id="kdnlp.{name}"') == 1, name


def test_every_command_has_its_help():
    pages = generated_pages()
    for name in COMMANDS:
        assert f"usage: kdnlp {name}" in pages[f"commands/{name}.md"]
        assert "--output" in pages[f"commands/{name}.md"] or name in ("push", "report")
    assert "--temperature" in pages["commands/distill.md"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_page_of_a_loss_says_what_when_values_and_source(name):
    page, loss = docs_losses.loss_page(name), LOSSES[name]
    parts = dict(re.findall(r"^## (.*?)\n\n(.*?)\n(?=##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert all(parts.values())
    assert list(parts) == ["What it computes", "When", "Values", "Use", "Source"]
    assert loss.citation in parts["Source"]
    assert cite(loss.citation) in page
    assert re.search(r"[12][09]\d\d", parts["Source"].partition("```")[0])
    taken = set(loss().config()) - {"problem_type", "temperature"}
    assert taken <= set(re.findall(r"^\| `(\w+)` \|", parts["Values"], re.MULTILINE))


def test_a_new_loss_has_its_page(monkeypatch):
    monkeypatch.setitem(LOSSES, "my_logits", LOSSES["logits_mse"])
    pages = docs_losses.loss_pages()
    assert pages["methods/losses/my_logits.md"].startswith("# my_logits\n")
    assert "[`my_logits`](my_logits.md)" in pages["methods/losses/index.md"]


def test_a_table_of_values_has_a_row_a_flag_with_its_default():
    rows = values_table("TheseusTrainingArguments").splitlines()[2:]
    assert rows[1].startswith("| `initial_replacing_rate` | `0.3` | The schedule's start b")
    assert not any("temperature" in row for row in rows)
    cached = values_table("DistillationTrainingArguments", "teacher_cache").splitlines()[2:]
    assert cached
    assert all(row.startswith("| `teacher_cache") for row in cached)
    assert "| `average` | `'probabilities'` |" in values_table("TeacherEnsemble")


def test_a_docstrings_sections_and_doctests_stay_out_of_its_text():
    text = docstring_text("schedules.linear")
    assert text == "`start + (end - start) * progress`: the curriculum of Xu et al. 2020, eq. 6."
    assert "members:" not in docstring_text("TeacherEnsemble")


def test_an_insertion_of_something_that_there_is_not_is_refused():
    with pytest.raises(KeyError, match="vlaues"):
        with_insertions("<!-- vlaues TeacherEnsemble -->")
    with pytest.raises(AttributeError, match="TeacherAssembly"):
        with_insertions("<!-- values TeacherAssembly -->")


def test_no_page_is_left_with_a_comment_for_the_code():
    # Those around the README's table of results are for whoever writes it anew.
    left = re.compile(r"<!--(?! (end of )?results: )")
    assert not [page for page, text in all_pages().items() if left.search(text)]


def test_every_link_of_the_readme_leads_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert links
    assert not [link for link in links if not Path(ROOT, link).exists()]
