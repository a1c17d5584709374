"""What is wrong with what was given is one message; what is wrong with the code is a traceback."""

import sys

import pytest

from kdnlp.cli import COMMANDS, main
from kdnlp.cli import report as command

ELSEWHERE = "/nonexistent/run"
ASKED = {
    "profile": [ELSEWHERE],
    "export": [
        *(ELSEWHERE, "--task", "synthetic_sentiment", "--output_dir", "x"),
        *("--format", "safetensors"),
    ],
    "report": [ELSEWHERE],
    "submit": ["--models", f"mrpc={ELSEWHERE}", "--output", "x.zip"],
    "push": [ELSEWHERE, "--repo_id", "me/x", "--dry_run"],
    "finetune": ["--model", ELSEWHERE, "--task", "synthetic_sentiment", "--output_dir", "x"],
    "theseus": ["--predecessor", ELSEWHERE, "--task", "synthetic_sentiment", "--output_dir", "x"],
    "distill": ["--teacher", ELSEWHERE, "--task", "synthetic_sentiment", "--output_dir", "x"],
    "ladder": [
        *("--teacher", ELSEWHERE, "--num_layers", "1", "--task", "synthetic_sentiment"),
        *("--output_dir", "x"),
    ],
}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_says_in_one_message_what_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([name, *ASKED[name]])
    assert isinstance(stopped.value.code, str)  # which ends with status 1
    assert stopped.value.code.startswith(f"kdnlp {name}: ")
    assert ELSEWHERE in stopped.value.code


@pytest.mark.parametrize("again", ["x", "x/", "./x", "link"])
def test_a_run_that_is_named_twice_is_no_second_seed(again, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    with pytest.raises(SystemExit, match=f"Expected every run once, got {again} again"):
        main(["report", "x", "y", again])


MISTYPED = {
    "profile": (["x", "--batch_size", "3"], "--batch_sizes"),
    "report": (["x", "--output", "y"], "--output_dir"),
    "submit": (["--models", "mrpc=x", "--output", "y", "--max_len", "3"], "--max_length"),
    "push": (["x", "--repo_id", "me/x", "--dry"], "--dry_run"),
}


@pytest.mark.parametrize("name", MISTYPED)
def test_a_flag_is_not_guessed_and_usage_is_one_line(name, capsys):
    arguments, meant = MISTYPED[name]
    with pytest.raises(SystemExit) as stopped:
        main([name, *arguments])
    assert stopped.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: kdnlp {name} ")
    assert f"Did you mean {meant}" in error
    assert error.endswith("--help lists every flag.")


def test_no_token_is_in_what_is_said_of_flags(capsys):
    with pytest.raises(SystemExit):
        main(["push", "x", "--repo_id", "me/x", "--token=hf_abcdefghijk"])
    assert "abcdefghijk" not in capsys.readouterr().err


DEFECTS = {
    "an index": lambda: [][0],
    "a conversion": lambda: int("seven"),
    "two lengths": lambda: list(zip([1], [], strict=True)),
    "a library": lambda: sys.modules["torch"].nn.init.xavier_uniform_(
        sys.modules["torch"].zeros(1)
    ),
    "a module": lambda: __import__("kdnlp.nowhere"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_keeps_its_traceback(name, monkeypatch):
    def defect(folder):
        return DEFECTS[name]()

    monkeypatch.setattr(command.CompressionReport, "load", defect)
    with pytest.raises((IndexError, ValueError, ImportError)):
        main(["report", "x"])


def test_no_token_is_in_the_message(monkeypatch):
    def refuse(folder):
        raise OSError("no access to https://me:hf_abcdefghijk@host")

    monkeypatch.setattr(command.CompressionReport, "load", refuse)
    with pytest.raises(SystemExit) as stopped:
        main(["report", "x"])
    assert stopped.value.code == "kdnlp report: no access to https://me:***@host"
