"""The command in report and card can be run by others, and names no place of this machine."""

import shlex

import pytest

from kdnlp.cli import demo
from kdnlp.cli.compress import _DATACLASSES
from kdnlp.cli.parsing import parse_arguments, without_config
from kdnlp.cli.shown_command import command_line
from kdnlp.hub.sections import reproduce


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--a", "b c"], "kdnlp theseus --a 'b c'"),
        (["--hub_token", "x", "--seed", "1"], "kdnlp theseus --seed 1"),
        (["--seed", "1", "--hub-token=x"], "kdnlp theseus --seed 1"),
        (["--hub-token", "x"], "kdnlp theseus"),
        (["--push_to_hub", "--hub_model_id", "me/x", "--fp16"], "kdnlp theseus --fp16"),
        (["--resume_from_checkpoint", "last", "--seed", "1"], "kdnlp theseus --seed 1"),
        (["--task", "mrpc", "--data_dir=~/clients/acme"], "kdnlp theseus --task mrpc"),
        (["--task", "mrpc", "--data_dir", "glue"], "kdnlp theseus --task mrpc"),
        (
            ["--predecessor", "../../home/alice/client/mrpc", "--seed", "1"],
            "kdnlp theseus --predecessor '<predecessor>' --seed 1",
        ),
        (
            ["--more_teachers", "/a/b", "org/c", "--output_dir=/a=b/c/", "--model=./m"],
            "kdnlp theseus --more_teachers '<more_teachers 1>' org/c --output_dir=c "
            "'--model=<model>'",
        ),
        (["--train_file", "rows.csv"], "kdnlp theseus --train_file '<train_file>'"),
        (["--deepspeed", "/home/alice/ds.json"], "kdnlp theseus --deepspeed '<deepspeed>'"),
        (
            ["--model", "org/base", "--losses", '{"x": "/a/b/c"}', "--report_to", "none"],
            """kdnlp theseus --model org/base --losses '{"x": "/a/b/c"}' --report_to none""",
        ),
        (["--model", "https://me:hf_abc@host/m"], "kdnlp theseus --model 'https://me:***@host/m'"),
    ],
)
def test_what_only_this_machine_has_is_a_visible_gap(argv, expected):
    assert command_line("theseus", argv) == expected


@pytest.mark.parametrize("name", ["acme/mrpc", "predecessor"])
def test_a_folder_that_could_be_a_hub_id_is_a_gap_once_it_is_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line("theseus", ["--model", name]).endswith(f"--model {name}")
    (tmp_path / name).mkdir(parents=True)
    assert command_line("theseus", ["--model", name]).endswith("--model '<model>'")


def test_a_configuration_file_is_written_out_and_the_result_is_the_same_run(tmp_path):
    (tmp_path / "mrpc.yaml").write_text(
        "task: mrpc\nseed: 3\ntheseus:\n  learning_rate: 2e-5\n  text_columns: [a, b]\n"
        "  replacing_fraction: 0.5\ndistill:\n  temperature: 9\n"
    )
    argv = ["--predecessor", "org/base", "--config", str(tmp_path / "mrpc.yaml")]
    argv += ["--output_dir", "out", "--seed", "4"]
    types = _DATACLASSES["theseus"]
    shown = command_line("theseus", without_config(types, argv, "theseus"))
    assert str(tmp_path) not in shown
    assert "--config" not in shown
    assert shown.count("--seed") == 1
    again = parse_arguments(types, shlex.split(shown)[2:], section="theseus")
    assert list(map(repr, again)) == list(map(repr, parse_arguments(types, argv, "theseus")))
    assert again[2].seed == 4
    assert without_config(types, ["--seed", "4"]) == ["--seed", "4"]


RUN = {"processes": 1, "device": "cpu", "seed": 1, "versions": {"kdnlp": "1"}}


class _Report:
    def __init__(self, **run):
        self.run = {**RUN, **run}


def test_the_card_says_what_others_lack_to_run_the_command():
    whole = reproduce(_Report(command="kdnlp demo --seed 1"))
    assert "```\n\nSeed 1, 1 process" in whole
    one = reproduce(_Report(command="kdnlp theseus --predecessor '<predecessor>'"))
    assert "`<predecessor>` is on the machine of the run and not published" in one
    assert "others cannot run the command without it. Seed 1" in one
    two = reproduce(_Report(command="kdnlp finetune --model '<model>' --train_file '<train_file>'"))
    assert "`<model>` and `<train_file>` are on the machine" in two
    python = {"base_model": "mine", "base_model_on_hub": False}
    assert "`mine` is a local folder that is not published" in reproduce(_Report(**python))
    assert "not published" not in reproduce(_Report(base_model="m/a", base_model_on_hub=True))


def test_the_demo_tells_its_own_command(monkeypatch, tmp_path):
    told = {}

    class _Trained:
        student, args = object(), None

    def publish(*arguments, **facts):
        told.update(facts)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_train_predecessor", lambda *_: object())
    monkeypatch.setattr(demo, "_compress", lambda *_: (_Trained(), {}))
    monkeypatch.setattr(demo, "prepare", lambda *_: {"train": [], "validation": []})
    monkeypatch.setattr(demo, "evaluate_model", lambda *_: {})
    monkeypatch.setattr(demo, "publish_results", publish)
    with pytest.raises(KeyboardInterrupt):
        demo.main("demo", ["--output_dir", str(tmp_path / "out"), "--seed", "2"])
    assert told["command"] == "kdnlp demo --output_dir out --seed 2"
