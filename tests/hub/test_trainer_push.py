"""`trainer.push_to_hub()` and the pushes of a run under way: what arrives, and what never does."""

import json
import logging
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load
from settings import TRAINER_ROWS, build_trainer, tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    default_data_collator,
)
from transformers.trainer import Trainer

from kdnlp.cli import main, steps
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.synthetic import SYNTHETIC_TASKS, build_config, build_tokenizer, generate
from kdnlp.hub.publish import publish_results
from kdnlp.models.pretrained import head_config
from kdnlp.trainers.publishing import STAGE
from kdnlp.uploads.card_check import check_card
from kdnlp.weights import SOURCE_DIGEST, folder_digest

WHOLE = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}

OWN_LICENSE = "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"


def pushing(row, folder, license="mit", **overrides):
    settings = {"push_to_hub": True, "hub_model_id": "me/small", "max_steps": 2, **overrides}
    options = {"trainer_options": {"processing_class": build_tokenizer()}}
    trainer = build_trainer(TRAINER_ROWS[row], folder, **options, **settings)
    trainer.license = license
    return trainer


@pytest.fixture
def stock_upload_is_refused(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the whole output_dir would be sent")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", refuse)


@pytest.mark.parametrize("row", ["finetuning", "distillation", "theseus"])
@pytest.mark.usefixtures("undrawn", "stock_upload_is_refused")
def test_every_trainer_publishes_model_report_and_card(hub, row, tmp_path):
    folder = tmp_path / "run"
    (folder / "teacher").mkdir(parents=True)
    (folder / ".env").write_text("secret")
    (folder / "teacher" / "model.safetensors").write_bytes(b"secret")
    task, partner = GLUE_TASKS["mrpc"], tiny_model("bert", 4)
    partner.config.update(head_config(task))
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    trainer = pushing(row, folder, partner=partner, **saving)
    trainer.train()
    scores = {"validation": {"f1": 0.8, "accuracy": 0.7, "score": 0.75, "loss": 0.4}}
    models = {"original": partner, "smaller": trainer.student}
    publish_results(
        trainer, models, dict.fromkeys(models, scores), task, "org/base", max_seconds=0.1
    )
    assert hub.names("me/small") == WHOLE | {"report.json", "report.md", "report.html"}
    card = check_card(hub.repos["me/small"].files()["README.md"].decode())
    assert (card.data.tags, card.data.license) == (["kdnlp", trainer.method], "mit")
    loaded = AutoModelForSequenceClassification.from_pretrained("me/small")
    for name, tensor in trainer.student.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def test_the_trainers_card_tells_of_a_graph_of_its_weights(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run")
    trainer.save_model()
    graph = tmp_path / "run" / "onnx"
    graph.mkdir()
    (graph / "model.onnx").write_bytes(b"graph")
    (graph / "export.json").write_text(json.dumps({SOURCE_DIGEST: folder_digest(graph.parent)}))
    trainer.push_to_hub()
    assert "onnx/model.onnx" in hub.names("me/small")
    card = check_card(hub.repos["me/small"].files()["README.md"].decode())
    assert "## ONNX" in card.text
    assert 'snapshot_download("me/small"' in card.text


def test_without_a_report_the_card_says_so_and_leaves_nothing_open(hub, tmp_path):
    trainer = pushing("distillation", tmp_path / "run", push_to_hub=False)
    trainer.train()
    commit = trainer.push_to_hub("by hand", license="apache-2.0", tags="small")
    assert commit.oid == hub.repos["me/small"].branches["main"]
    assert hub.names("me/small") == WHOLE
    card = check_card(hub.repos["me/small"].files()["README.md"].decode())
    assert (card.data.license, card.data.tags) == (
        "apache-2.0",
        ["kdnlp", "distillation", "small"],
    )
    assert "2 optimizer steps" in card.text
    assert "It has not been measured" in card.text


def test_save_model_publishes_as_the_stock_trainer_does(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run")
    trainer.train()
    assert hub.names("me/small") == set()
    trainer.save_model()
    assert hub.names("me/small") == WHOLE
    assert hub.repos["me/small"].messages[1:] == ["Model save"]


def card_of(hub, branch):
    return hub.repos["me/small"].files(branch)["README.md"].decode()


def test_a_push_in_the_background_and_to_a_branch(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run", hub_revision="seed-3")
    trainer.train()
    assert trainer.push_to_hub(blocking=False).result(60).commit_message == "End of training"
    assert hub.names("me/small") == set()
    assert hub.names("me/small", "seed-3") == WHOLE
    assert 'from_pretrained("me/small", revision="seed-3")' in card_of(hub, "seed-3")
    trainer.push_to_hub(revision="main")
    assert 'from_pretrained("me/small")' in card_of(hub, "main")


def test_checkpoints_are_published_as_plain_models_and_the_rest_stays(hub, tmp_path):
    folder = tmp_path / "run"
    trainer = pushing(
        "theseus",
        folder,
        hub_strategy="every_save",
        hub_always_push=True,
        **SAVING,
        save_total_limit=1,
    )
    trainer.train()
    repo = hub.repos["me/small"]
    assert repo.messages[1:] == [f"Training in progress, step {step}" for step in (2, 4)]
    assert hub.names("me/small") == WHOLE
    last = load(repo.files()["model.safetensors"])
    assert all(torch.equal(last[k], v) for k, v in trainer.student.state_dict().items())
    assert not (folder / STAGE).exists() or not list((folder / STAGE).iterdir())
    # The stock trainer copies the weights to where the finished model is expected.
    assert not (folder / "model.safetensors").exists()
    check_card(repo.files()["README.md"].decode())


def test_at_the_end_only_is_the_wish_of_hub_strategy_end(hub, tmp_path):
    pushing("finetuning", tmp_path / "run", hub_strategy="end", **SAVING).train()
    assert hub.repos["me/small"].messages == ["initial commit"]


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_strategy_that_would_publish_optimizer_states_is_refused(tmp_path, strategy):
    with pytest.raises(ValueError, match="optimizer and random states"):
        pushing("finetuning", tmp_path / "run", hub_strategy=strategy)


@pytest.mark.parametrize(("row", "pushes"), [("distillation", 2), ("distillation-parameters", 0)])
def test_parameters_of_a_loss_never_arrive(hub, row, pushes, tmp_path, caplog):
    trainer = pushing(
        row, tmp_path / "run", hub_strategy="every_save", hub_always_push=True, **SAVING
    )
    trainer.train()
    assert len(hub.repos["me/small"].messages) == 1 + pushes
    trainer.push_to_hub()
    there = load(hub.repos["me/small"].files()["model.safetensors"])
    assert not [name for name in there if "losses" in name]


def test_a_push_that_fails_under_way_is_said_and_training_goes_on(hub, tmp_path, caplog):
    hub.fail("POST", "/commit/", 500, times=100)
    trainer = pushing("finetuning", tmp_path / "run", hub_strategy="every_save", **SAVING)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().global_step == 4
    said, last = "A checkpoint was not pushed; training goes on", time.monotonic() + 20
    while said not in caplog.text and time.monotonic() < last:
        time.sleep(0.01)  # the thread that has pushed says so after whoever waits for it goes on
    assert said in caplog.text
    assert hub.names("me/small") == set()


def test_what_a_killed_run_was_about_to_push_is_removed(tmp_path):
    left = tmp_path / "run" / STAGE / "checkpoint-2"
    left.mkdir(parents=True)
    build_trainer(TRAINER_ROWS["finetuning"], tmp_path / "run", max_steps=1).train()
    assert not left.parent.exists()


@pytest.mark.parametrize("problem", ["no token", "refused", "another's", "offline"])
def test_what_would_fail_after_training_is_refused_before_it(hub, tmp_path, monkeypatch, problem):
    monkeypatch.setattr(Trainer, "train", lambda *args: pytest.fail("it trains"))
    name, said = "me/small", "found none"
    if problem == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif problem == "refused":
        monkeypatch.setenv("HF_TOKEN", "hf_revoked")
        said = "refuses the token"
    elif problem == "another's":
        name, said = "other/small", "Expected a repository of me or"
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        said = "HF_HUB_OFFLINE is set"
    with pytest.raises(OSError, match=said):
        pushing("finetuning", tmp_path / "run", hub_model_id=name)
    assert hub.repos == {}


def test_a_card_that_leaves_something_open_stops_the_push(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run")
    trainer.train()
    trainer.model_card = trainer._card().replace("2 optimizer steps", "{{ steps }} steps")
    with pytest.raises(ValueError, match="every field filled"):
        trainer.push_to_hub()
    assert hub.names("me/small") == set()
    assert Path(trainer.args.output_dir, "model.safetensors").is_file()


def test_without_a_licence_nothing_is_trained_that_is_to_be_published(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *args: pytest.fail("it trains"))
    trainer = pushing("finetuning", tmp_path / "run", license=None)
    with pytest.raises(ValueError, match=r"needs a licence .* set trainer\.license"):
        trainer.train()
    trainer.license = "The MIT Licence"
    with pytest.raises(ValueError, match="Expected a licence's id"):
        trainer.train()
    assert hub.names("me/small") == set()


def test_without_a_licence_nothing_is_pushed_afterwards_either(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run", license=None, push_to_hub=False)
    trainer.train()
    trainer.model_card = trainer._card()
    with pytest.raises(ValueError, match="Expected a licence in"):
        trainer.push_to_hub()
    assert hub.names("me/small") == set()
    trainer.license = "mit"  # a card that is there already gets it too
    trainer.push_to_hub()
    assert check_card(hub.repos["me/small"].files()["README.md"].decode()).data.license == "mit"


def test_a_licence_of_its_own_is_inherited_with_its_text(hub, tmp_path):
    base = tmp_path / "base"
    tiny_model("bert", 2).save_pretrained(base)
    (base / "README.md").write_text(OWN_LICENSE)
    (base / "LICENSE").write_text("You may.")
    trainer = pushing(
        "finetuning", tmp_path / "run", license=None, hub_strategy="every_save", **SAVING
    )
    trainer.student.config._name_or_path = str(base)
    trainer.train()
    trainer.save_model()
    files = hub.repos["me/small"].files()
    assert files["LICENSE"] == b"You may."
    data = check_card(files["README.md"].decode()).data
    assert (data.license, data.license_name, data.license_link) == ("other", "own", "LICENSE")


def test_private_is_asked_for_again_when_the_repository_is_known(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run")
    trainer.train()
    with pytest.raises(PermissionError, match="Expected a private repository"):
        trainer.push_to_hub(private=True)
    assert hub.names("me/small") == set()


def test_a_model_without_its_tokenizer_is_not_published(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run")
    trainer.train()
    trainer.processing_class, trainer.data_collator = None, default_data_collator
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is missing"):
        trainer.push_to_hub()
    assert hub.names("me/small") == set()


def test_a_card_that_was_made_before_the_repository_was_named_loads_it(hub, tmp_path):
    trainer = pushing("finetuning", tmp_path / "run", push_to_hub=False, hub_model_id=None)
    trainer.train()
    trainer.model_card = trainer._card()
    assert 'from_pretrained("run")' in trainer.model_card
    trainer.args.hub_model_id = "small"
    trainer.push_to_hub()
    there = hub.repos["me/small"].files()["README.md"].decode()
    assert there.count('from_pretrained("me/small")') == 2
    assert 'from_pretrained("run")' not in there


@pytest.mark.parametrize("command", ["finetune", "distill", "theseus", "ladder"])
def test_a_command_that_publishes_without_a_licence_ends_before_it_loads(hub, command, tmp_path):
    names = {"finetune": "model", "theseus": "predecessor"}
    place = tmp_path / "base"
    place.mkdir()
    argv = [command, f"--{names.get(command, 'teacher')}", str(place), "--push_to_hub"]
    argv += ["--task", "mrpc", "--data_dir", str(tmp_path / "none"), "--use_cpu"]
    argv += ["--hub_model_id", "me/small", "--output_dir", str(tmp_path / "out")]
    argv += ["--num_layers", "2"] if command == "ladder" else []
    with pytest.raises((ValueError, SystemExit), match="--push_to_hub needs a licence"):
        main(argv)
    assert hub.requests == []
    (place / "README.md").write_text("---\nlicense: mit\n---\n")
    with pytest.raises((OSError, ValueError, SystemExit), match="none"):  # the rows are looked for
        main(argv)


COMMANDS = {
    "finetune": ("--model",),
    "theseus": ("--no_baseline", "--report_seconds", "0.1", "--num_layers", "1", "--predecessor"),
    "ladder": ("--report_seconds", "0.1", "--num_layers", "1", "--teacher"),
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_hands_the_licence_to_everything_that_it_pushes(
    hub, command, tmp_path, monkeypatch
):
    few = partial(generate, num_train=16, num_validation=16)
    monkeypatch.setattr(steps, "generate", few)
    base, run = tmp_path / "base", tmp_path / "run"
    config = build_config(2, hidden_size=16, num_heads=2, intermediate_size=24)
    config.update(head_config(SYNTHETIC_TASKS["synthetic_sentiment"]))
    BertForSequenceClassification(config).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    (base / "README.md").write_text(OWN_LICENSE)  # which the one that is asked for comes before
    argv = [command, *COMMANDS[command], str(base), "--license", "mit", "--max_length", "32"]
    argv += ["--task", "synthetic_sentiment", "--max_steps", "4", "--use_cpu"]
    argv += ["--push_to_hub", "--hub_model_id", "me/small", "--hub_strategy", "end"]
    main([*argv, "--output_dir", str(run), "--disable_tqdm", "true"])
    (repo,) = hub.repos.values()
    assert repo.messages[1:] == ["Model save", "End of training"]
    for commit in list(repo.commits.values())[1:]:
        assert check_card(commit["README.md"].decode()).data.license == "mit"
