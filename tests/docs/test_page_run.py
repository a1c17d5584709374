"""What runs the blocks fails where a reader would, and says where that is."""

import re

import pytest
from code_blocks import Block, find_blocks
from page_run import PageRun, patched, shortening

PAGE = "page.md"


def block(language, text, title=""):
    return Block(PAGE, 7, language, title, text)


def fails(message):
    """The failure of the block at line 7."""
    return pytest.raises(AssertionError, match=re.escape(f"{PAGE}, line 7: {message}"))


@pytest.fixture
def page_run(tmp_path, monkeypatch):
    for name in ("work", "bin"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return PageRun(tmp_path / "work", tmp_path / "bin")


def test_a_block_is_found_with_its_line_title_and_without_its_indentation():
    text = 'a\n\n- b\n\n    ```yaml title="x.yaml"\n    k:\n      - v\n    ```\n\n```sh\nls\n```\n'
    assert find_blocks(PAGE, text) == [
        Block(PAGE, 5, "yaml", "x.yaml", "k:\n  - v\n"),
        Block(PAGE, 10, "sh", "", "ls\n"),
    ]


def test_python_blocks_share_their_names_and_name_the_line_that_fails(page_run):
    page_run.run(block("python", "a = 1\n"))
    page_run.run(block("python", "b = a + 1\n"))
    assert page_run.namespace["b"] == 2
    with pytest.raises(ZeroDivisionError) as failed:
        page_run.run(block("python", "a\na / 0\n"))
    assert failed.traceback[-1].lineno + 1 == 9


def test_a_diff_changes_the_first_block_and_runs_the_whole(page_run):
    page_run.run(block("python", "a = 1\nb = a\n"))
    page_run.run(block("python", "a = 5\n"))
    page_run.run(block("diff", "@@ a @@\n-a = 1\n+a = 2\n@@ b @@\n b = a\n+c = b\n"))
    assert [page_run.namespace[name] for name in "abc"] == [2, 2, 2]


@pytest.mark.parametrize("text", ["@@ a @@\n-a = 3\n+a = 2\n", "@@ a @@\n-b\n+c\n"])
def test_a_diff_that_does_not_fit_at_one_place_is_refused(text):
    with fails("this is not in the first block"):
        patched("a = 1\nb\nb\n", block("diff", text))


def test_a_file_is_written_under_its_title(page_run):
    page_run.run(block("csv", "a,b\n", "rows.csv"))
    assert (page_run.folder / "rows.csv").read_text() == "a,b\n"
    with fails("which file is it?"):
        page_run.run(block("yaml", "a: b\n"))


def test_bash_expands_and_loops_and_asks_for_kdnlp(page_run):
    loop = "for x in x-*; do\n  kdnlp push $x --repo_id a || echo $x > said-$x\ndone\n"
    page_run.run(block("sh", f"mkdir x-1 x-2\n{loop}"))
    assert (page_run.folder / "said-x-2").read_text() == "x-2\n"


@pytest.mark.parametrize(
    "text",
    [
        "kdnlp repotr out",
        "kdnlp report nowhere; ls",
        "kdnlp distill --techer x\nls",
        "false | cat",
        "echo $UNSET",
    ],
)
def test_shell_that_fails_names_its_place(text, page_run):
    with fails("bash ended with"):
        page_run.run(block("sh", text))


def test_what_raises_in_a_command_is_told_with_the_command(page_run):
    with pytest.raises(AssertionError, match=re.escape("python other.py")):
        page_run.run(block("sh", "python other.py"))


def test_a_language_that_nothing_runs_is_refused(page_run):
    with fails("nothing runs 'console'"):
        page_run.run(block("console", "$ ls\n"))


def test_a_command_is_shortened_and_one_that_resumes_overwrites_nothing():
    short = ("--max_steps", "3")
    assert shortening(short, ["theseus"]) == (*short, "--overwrite_output_dir")
    assert shortening(short, ["theseus", "--resume_from_checkpoint", "last"]) == short
    assert shortening((), ["report", "out"]) == ()
