"""Sharded over two gloo processes, every trainer trains what one process trains."""

import json

import pytest
import torch
from settings import TRAINER_ROWS, build_trainer
from test_two_processes import SCRIPT, launch
from transformers import AutoModelForSequenceClassification

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]
SHARDED = [n for n, row in TRAINER_ROWS.items() if "gradient_norm" not in row.arguments.values()]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    launch(str(SCRIPT), str(folder), "4", "fsdp")
    return folder, json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", SHARDED)
def test_shards_follow_one_process_of_8(name, sharded, tmp_path):
    got = sharded[1][name]
    assert got["strategy"] == "DistributedType.FSDP"
    if TRAINER_ROWS[name].of_the_batch:
        pytest.skip("the loss relates the items of a batch to each other")
    torch.manual_seed(11)
    one = build_trainer(
        TRAINER_ROWS[name],
        tmp_path,
        per_device_train_batch_size=8,
        eval_strategy="steps",
        eval_steps=3,
    )
    one.train()
    for key in ("loss", "grad_norm", "loss_task", "eval_loss", "replacing_rate"):
        expected = [entry[key] for entry in one.state.log_history if key in entry]
        values = [entry[key] for entry in got["history"] if key in entry]
        assert values == pytest.approx(expected, rel=1e-3, abs=1e-6), key


@pytest.mark.parametrize("name", SHARDED)
def test_the_callers_model_is_whole_and_trained_on_every_process(name, sharded):
    folder, results = sharded
    first, second = results[name]["checksums"]
    assert first == second
    assert results[name]["same_object"]
    saved = AutoModelForSequenceClassification.from_pretrained(folder / name)
    assert saved.config.architectures == ["BertForSequenceClassification"]
    own = [tensor.double().sum().item() for tensor in saved.state_dict().values()]
    assert own == pytest.approx(first, rel=1e-6)
    losses = [entry["eval_loss"] for entry in results[name]["history"] if "eval_loss" in entry]
    assert results[name]["evaluates"] == pytest.approx(losses[-1], rel=1e-5)


@pytest.mark.parametrize("name", ["theseus", "distillation-parameters"])
def test_a_sharded_run_is_resumed_exactly(name, sharded):
    assert sharded[1][name]["resumed"] == sharded[1][name]["checksums"][0]


def test_fsdp_that_accelerate_would_silently_leave_out_is_refused(sharded):
    said = sharded[1]["refused"]
    for words in ("fsdp was asked for", "does not start it on cpu", "under DDP", "Leave fsdp out"):
        assert words in said
