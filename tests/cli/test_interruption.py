"""Ctrl-C ends every command with one line that tells what is left, and with status 130."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from settings import tiny_model
from transformers import TrainerCallback

from kdnlp.arguments import CompressionTrainingArguments
from kdnlp.cli import main, steps
from kdnlp.cli import report as command
from kdnlp.cli.remains import remains_told
from kdnlp.cli.rungs import RUNG_JSON
from kdnlp.data.synthetic import build_tokenizer, generate
from kdnlp.files import PARTIAL
from kdnlp.trainers.base import CompressionTrainer


def interrupted(capsys, *arguments):
    """What is said last; the process is about to end, and leaves a second Ctrl-C to the system."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_DFL
    assert ended.value.code == 130
    return "\n".join(capsys.readouterr().err.splitlines()[-1:])


def interrupt(*_, **__):
    signal.raise_signal(signal.SIGINT)


def test_a_command_that_does_not_train_says_that_nothing_was_kept(monkeypatch, capsys):
    monkeypatch.setattr(command.CompressionReport, "load", interrupt)
    assert interrupted(capsys, "report", "x") == "kdnlp report: Interrupted; nothing was kept."


def test_ctrl_c_is_the_callers_again_when_a_command_has_ended(monkeypatch):
    monkeypatch.setattr(command.CompressionReport, "load", lambda folder: [][0])
    with pytest.raises(IndexError):
        main(["report", "x"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_of_several_processes_one_says_it(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(command.CompressionReport, "load", interrupt)
    assert interrupted(capsys, "report", "x") == ""


TWICE = """
import signal, time
from kdnlp.cli.interruption import ends_in_one_line
with ends_in_one_line("report"):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)
"""


def test_a_second_ctrl_c_waits_for_nothing():
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", TWICE], check=False, timeout=50)
    assert done.returncode == -signal.SIGINT
    assert time.monotonic() - began < 40


class Interrupt(TrainerCallback):
    """Ctrl-C in the middle of the third step."""

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            interrupt()


TRAINING = (
    *("--task", "synthetic_sentiment", "--max_steps", "4"),
    *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
    *("--use_cpu", "--disable_tqdm", "true", "--max_length", "8"),
)


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    tokenizer = build_tokenizer()
    tiny_model("bert", 1, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    rows = partial(generate, num_train=16, num_validation=4)
    monkeypatch.setattr(steps, "generate", rows)
    init = CompressionTrainer.__init__

    def with_interruption(self, *args, **kwargs):
        init(self, *args, **kwargs, callbacks=[Interrupt()])

    monkeypatch.setattr(CompressionTrainer, "__init__", with_interruption)
    return tmp_path / "encoder"


def test_training_says_where_its_last_checkpoint_is_and_how_to_go_on(encoder, tmp_path, capsys):
    out = tmp_path / "out"
    run = ("finetune", "--model", encoder, "--output_dir", out, *TRAINING)
    nothing = "kdnlp finetune: Interrupted; nothing was kept."
    assert interrupted(capsys, *run, "--save_strategy", "no") == nothing
    assert not out.exists()
    saves = (*run, "--save_strategy", "steps", "--save_steps", "1")
    assert interrupted(capsys, *saves) == (
        f"kdnlp finetune: Interrupted; the last checkpoint, {out / 'checkpoint-2'}, is kept. The "
        "same command with --resume_from_checkpoint last goes on from there."
    )
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    # An earlier run's checkpoints are none of this one's.
    again = (*run, "--save_strategy", "no", "--overwrite_output_dir")
    assert interrupted(capsys, *again) == nothing
    assert not (out / PARTIAL).exists()


def remains(folder, made, before=(), **arguments):
    """What is said after files were made, where others had been there."""
    touch(folder, before)
    for name in before:
        os.utime(folder / name, (1, 1))
    with pytest.raises(KeyboardInterrupt) as stop:
        make_until_interrupted(folder, made, **arguments)
    return str(stop.value)


def make_until_interrupted(folder, made, **arguments):
    with remains_told(CompressionTrainingArguments(str(folder), use_cpu=True, **arguments)):
        touch(folder, made)
        raise KeyboardInterrupt


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


STATE, ANEW = "checkpoint-3/trainer_state.json", {"overwrite_output_dir": True}


@pytest.mark.parametrize(
    ("made", "before", "arguments", "said"),
    [
        ([], [], {}, "nothing was kept."),
        (["checkpoint-3/model.safetensors"], [], {}, "nothing was kept."),
        ([STATE, "checkpoint-20/trainer_state.json"], [], {}, "checkpoint-20, is kept. The same"),
        ([], [STATE], ANEW, "nothing was kept."),
        ([STATE], [STATE], ANEW, "checkpoint-3, is kept."),
        ([], [STATE], {"resume_from_checkpoint": "last", **ANEW}, "checkpoint-3, is kept."),
        ([STATE], [], {"save_only_model": True}, "and no run can go on from it."),
        (["model.safetensors"], [], {}, "the trained model is kept in"),
        ([], ["model.safetensors"], ANEW, "nothing was kept."),
        ([f"2-layers/{RUNG_JSON}"], [], {}, "The same command goes on from there."),
        ([], [f"2-layers/{RUNG_JSON}"], {}, "The same command goes on from there."),
        ([f"2-layers/{RUNG_JSON}"], [], ANEW, "command without --overwrite_output_dir goes on"),
    ],
)
def test_what_is_said_to_be_kept_is_kept_and_of_this_run(made, before, arguments, said, tmp_path):
    assert said in remains(tmp_path / "out", made, before, **arguments)
