"""What lies in a run's folder before the run."""

import pytest

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.cli import steps
from kdnlp.trainers.output_dir import check_other_files


@pytest.fixture
def start(tmp_path):
    """What a training command does before it loads anything, in a folder with such files."""

    def start(*names, **arguments):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("mine")
        with steps._held:
            steps.start(CompressionTrainingArguments(str(tmp_path), use_cpu=True, **arguments))
        assert all((tmp_path / name).read_text() == "mine" for name in names)

    return start


def test_other_files_stay_and_are_told(start, caplog):
    start("notes.txt", "data/a.csv", "b.txt", "c.txt")
    assert "holds other files already (b.txt, c.txt, data, ...)" in caplog.text


def test_nothing_is_told_of_an_empty_folder_or_of_what_kdnlp_and_tools_keep(start, caplog):
    start("_baseline/x", "_damaged-checkpoint-3/x", "runs/host/events", ".git/config")
    assert caplog.records == []


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "report.html", "config.json", "tokenizer.json"]
)
def test_a_file_that_the_run_would_replace_is_refused(name, start, tmp_path):
    with pytest.raises(ValueError, match=rf"holds no run, but {name}, which a run writes too"):
        start(name, "notes.txt")
    assert (tmp_path / name).read_text() == "mine"
    start(overwrite_output_dir=True)


def test_the_first_of_many_are_named(tmp_path):
    for name in ("vocab.txt", "README.md", "config.json", "report.md"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"but README\.md, config\.json, report\.md, which"):
        check_other_files(str(tmp_path))
