"""The page is one file: no network, no scripts, every text escaped, the table's own numbers."""

import base64
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from test_comparison import RUNS
from test_report import account, full_report, small_report

from kdnlp.evaluation import comparison_files
from kdnlp.evaluation.against import judge
from kdnlp.evaluation.comparison import compare
from kdnlp.evaluation.comparison_files import save_comparison
from kdnlp.evaluation.html import PageTable, page_html
from kdnlp.evaluation.rows import rows_of
from kdnlp.profiling.speedup import Speedup


class Reader(HTMLParser):
    """What a page holds: its tags, where its links lead, and the cells of its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.rows, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if {"td", "th"} & set(self.open) and "span" not in self.open:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    full_report().save(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(page):
    reader = Reader(page)
    assert reader.links
    assert all(link.startswith("data:image/svg+xml;base64,") for link in reader.links)
    assert not {"script", "link", "iframe", "object", "base"} & set(reader.tags)
    assert not re.search(r"@import|url\(", page)
    for link in reader.links:
        svg = base64.b64decode(link.partition(",")[2]).decode()
        assert "<svg" in svg
        assert not re.search(r'(?:href|src)="(?!#)', svg)  # its own parts only


def test_the_page_shows_the_rows_of_the_report(page):
    rows = [[cell.strip() for cell in row] for row in Reader(page).rows]
    for row in rows_of(full_report()):
        assert [row.label, *row.cells] in rows
        assert row.how.replace("'", "&#39;") in page
    assert ["no", "7", "71.4", "57.1", "42.9"] in rows
    assert '<table class="dense explained">' in page


def test_light_and_dark_readers_are_served(page):
    assert "color-scheme: light dark" in page
    assert "prefers-color-scheme: dark" in page


def test_names_cannot_become_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    models = (account("teacher", 0.8, 10.0), account(evil, 0.7, 5.0))
    small_report(task=evil, models=models).save(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "script" not in Reader(page).tags
    assert "&lt;script&gt;" in page


def test_a_table_without_notes_on_its_rows_is_plain():
    page = page_html("t", [PageTable("", ("a", "b", "c"), [("x", "1", "2")], note="n")], [])
    assert Reader(page).rows == [["a", "b", "c"], ["x", "1", "2"]]
    assert 'class="how"' not in page
    assert "What is not here" not in page


def save_wide_report(folder):
    """A report of six models, as of a ladder."""
    names = ("teacher", *(f"{layers} layers" for layers in range(5, 0, -1)))
    models = tuple(account(name, 0.8, 10.0, 123_000_000) for name in names)
    small_report(models=models).save(folder)


def save_usual_report(folder):
    """Three models with everything that a run can leave, at latencies of a large model."""
    models = [
        replace(
            model,
            latency=tuple(
                replace(row, p50_ms=2.1 * row.p50_ms, speedup=Speedup(1.1, 1.05, 1.15, 0.95, 30))
                for row in model.latency
            ),
        )
        for model in full_report().models
    ]
    replace(full_report(), models=tuple(models)).save(folder)


def save_wide_comparison(folder):
    """Two tasks, with names of models that take room."""
    losses = {"logits": {}, "hidden": {}, "relation": {}}
    behaviour = {"validation": {"agreement": 0.8, "calibration_error": 0.123}}
    models = tuple(replace(model, behaviour=behaviour) for model in RUNS[0].models)
    reports = [
        replace(RUNS[0], task=task, run={"method": "theseus", "seed": s, "losses": losses})
        for task in ("mrpc", "my own paraphrases")
        for s in (1, 2, 3)
    ]
    rows = compare([replace(report, models=models) for report in reports])
    save_comparison(rows, folder, judge(rows))


def test_of_several_tasks_each_has_a_table_without_a_column_for_its_name(tmp_path, monkeypatch):
    def drawn(_, folder, name):
        (folder / f"{name}.svg").write_text("<svg/>")

    monkeypatch.setattr(comparison_files, "save_figure", drawn)
    save_wide_comparison(tmp_path)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    headers = [row for row in Reader(page).rows if row[0] in ("task", "model")]
    assert [(row[0], len(row)) for row in headers] == [("model", 9), ("model", 6)] * 2
    assert page.count('<table class="dense">') == 4
    assert re.search(r"table\.dense td \{ white-space: normal; \}", page)
    assert "±\u00a0" in page  # a mean and its deviation stay on a line
    assert page.index("<h2>mrpc</h2>") < page.index("<figure>") < page.index("<h2>my own")


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to lay the page out")
@pytest.mark.parametrize(
    ("save", "name"),
    [
        (save_usual_report, "report"),
        (save_wide_report, "report"),
        (save_wide_comparison, "comparison"),
    ],
)
def test_no_table_scrolls_sideways_in_a_window_of_900_pixels(tmp_path, save, name):
    save(tmp_path)
    page = tmp_path / f"{name}.html"
    measure = (
        "<script>document.title = 'hidden: ' + [...document.querySelectorAll('.wide')]"
        ".map(table => table.scrollWidth - table.clientWidth)</script></body>"
    )
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", measure), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,2600", "--dump-dom")
    laid_out = subprocess.run(
        [CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    hidden = re.search(r"<title>hidden: (.*)</title>", laid_out.stdout).group(1)
    assert set(hidden.split(",")) == {"0"}
