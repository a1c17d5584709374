"""Sharded over two gloo processes, every trainer trains what one process trains."""

import json

import pytest
from run_rows import FEW_SHARDED, RESUMED, SHARDED
from settings import TASK_ROWS, TRAINER_ROWS, build_trainer, few_of, task_model
from transformers import AutoModelForSequenceClassification

from kdnlp.trainers.sharding import tied_apart

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
ROWS = pytest.mark.parametrize(
    ("name", "part"), few_of(SHARDED, FEW_SHARDED, ("sharded-few", "sharded-rest"))
)


@ROWS
def test_shards_follow_one_process_of_8(name, part, launched, follows_one_process):
    got = launched(part)[1][name]
    assert got["strategy"] == "DistributedType.FSDP"
    follows_one_process(name, got["history"])


@ROWS
def test_the_callers_model_is_whole_and_trained_on_every_process(name, part, launched):
    folder, results = launched(part)
    first, second = results[name]["checksums"]
    assert first == second
    assert results[name]["same_object"]
    saved = AutoModelForSequenceClassification.from_pretrained(folder / name)
    assert saved.config.architectures == ["BertForSequenceClassification"]
    own = [tensor.double().sum().item() for tensor in saved.state_dict().values()]
    assert own == pytest.approx(first, rel=1e-6)
    losses = [entry["eval_loss"] for entry in results[name]["history"] if "eval_loss" in entry]
    assert results[name]["evaluates"] == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("name", RESUMED)
def test_a_sharded_run_is_resumed_exactly(name, launched):
    got = launched("sharded-few")[1][name]
    assert got["resumed"] == got["checksums"][0]


@pytest.mark.slow
def test_tasks_whose_tied_weights_would_be_torn_apart_are_refused(launched):
    results = launched("sharded-tasks")[1]
    refused = {task: said for task, said in results.items() if isinstance(said, str)}
    assert set(refused) == {"masked_lm", "seq2seq_lm"}
    assert all("weights tied between" in said for said in refused.values())


def test_fsdp_that_accelerate_would_silently_leave_out_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"FSDP was asked for.*did not start it here"):
        build_trainer(TRAINER_ROWS["theseus"], tmp_path)


@pytest.mark.slow
def test_a_command_under_fsdp_leaves_report_card_and_a_plain_successor(launched):
    out = launched("sharded-command")[0] / "out"
    report = json.loads((out / "report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["predecessor", "successor", "baseline"]
    assert report["run"]["processes"] == 2
    assert "ensemble_metrics" not in report["run"]
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_hidden_layers == 2


@pytest.mark.parametrize("task", TASK_ROWS)
def test_ties_between_shards_are_found(task):
    assert bool(tied_apart(task_model(task))) == (task in ("masked_lm", "seq2seq_lm"))
