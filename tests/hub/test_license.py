"""The licence that is set last is the one that is published, and no text of another goes along."""

import logging

import pytest
from huggingface_hub import ModelCard
from settings import TRAINER_ROWS, build_trainer, tiny_model

from kdnlp.cli import main
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.data.task import Task
from kdnlp.hub.publish import publish_results

TASK = Task("own", ("text",), ("no", "yes"), ("accuracy",), max_length=8)
SCORES = {"validation": {"accuracy": 0.8, "score": 0.8, "loss": 0.4}}
OWN = "license: other\nlicense_name: own\nlicense_link: LICENSE\n"
HEAD = "library_name: transformers\npipeline_tag: text-classification\ntags:\n- kdnlp\n"
FIELDS = ("license", "license_name", "license_link")


@pytest.fixture
def base(tmp_path):
    """A model whose licence is its own, with the text beside the card."""
    place = tmp_path / "base"
    tiny_model("bert", 4).save_pretrained(place)
    build_tokenizer().save_pretrained(place)
    (place / "README.md").write_text(f"---\n{HEAD}{OWN}---\n\n# A model\n")
    (place / "LICENSE").write_text("You may.")
    return place


def untrained(folder):
    return build_trainer(
        TRAINER_ROWS["finetuning"],
        folder,
        hub_model_id="me/small",
        max_steps=1,
        trainer_options={"processing_class": build_tokenizer()},
    )


@pytest.fixture
def trainer(hub, base, tmp_path, undrawn):
    """It has published its model under the licence of its base, with a report."""
    made = untrained(tmp_path / "run")
    publish(made, base)
    made.push_to_hub()
    assert published(hub) == ["other", "own", "LICENSE"]
    assert hub.repos["me/small"].files()["LICENSE"] == b"You may."
    return made


def publish(trainer, base):
    trainer.save_model()
    models = {"original": tiny_model("bert", 4), "student": trainer.student}
    publish_results(trainer, models, dict.fromkeys(models, SCORES), TASK, str(base), None, 0.1)


def published(hub):
    """What the card says of the licence, there."""
    data = ModelCard(hub.repos["me/small"].files()["README.md"].decode()).data
    return [data.get(name) for name in FIELDS]


def push(folder, *flags):
    main(["push", str(folder), "--repo_id", "me/small", *flags])


def test_a_licence_that_is_set_after_the_report_takes_the_inherited_ones_place(
    hub, trainer, caplog
):
    trainer.license = "mit"
    with caplog.at_level(logging.WARNING):
        trainer.push_to_hub()
    assert published(hub) == ["mit", None, None]
    assert "LICENSE" not in hub.names("me/small")
    assert "LICENSE is not published" in caplog.text
    trainer.license = None  # nothing is set: the card stands as it was made
    trainer.push_to_hub()
    assert published(hub) == ["other", "own", "LICENSE"]
    assert hub.repos["me/small"].files()["LICENSE"] == b"You may."


def test_a_licence_that_is_passed_to_the_push_is_that_of_a_card_with_a_report_too(hub, trainer):
    trainer.push_to_hub(license="apache-2.0")
    assert published(hub) == ["apache-2.0", None, None]
    assert "LICENSE" not in hub.names("me/small")
    with pytest.raises(ValueError, match="Expected a licence's id"):
        trainer.push_to_hub(license="Apache Two")
    assert published(hub) == ["apache-2.0", None, None]


def test_a_licence_that_was_found_does_not_replace_what_somebody_wrote_into_the_card(hub, trainer):
    trainer.model_card = trainer.model_card.replace(OWN, "license: bigscience-openrail-m\n")
    trainer.push_to_hub()
    assert published(hub) == ["bigscience-openrail-m", None, None]
    assert "LICENSE" not in hub.names("me/small")


def test_a_text_that_somebody_put_beside_his_card_is_not_replaced_by_the_found_one(hub, trainer):
    trainer.model_card = trainer.model_card.replace("license_name: own", "license_name: mine")
    folder = trainer.args.output_dir
    with open(f"{folder}/LICENSE", "w") as file:
        file.write("You may not.")
    trainer.push_to_hub()
    assert published(hub) == ["other", "mine", "LICENSE"]
    assert hub.repos["me/small"].files()["LICENSE"] == b"You may not."


def test_what_was_found_is_not_taken_for_what_the_user_sets(base, tmp_path, undrawn):
    made = build_trainer(TRAINER_ROWS["finetuning"], tmp_path / "run", max_steps=1)
    publish(made, base)
    assert made.license is None  # it was found, and is not taken for what the user asks for
    made.license = "mit"
    publish(made, base)
    assert ModelCard.load(tmp_path / "run" / "README.md").data.license == "mit"


def test_a_card_without_a_report_goes_without_the_text_of_a_licence_that_was_replaced(
    hub, base, tmp_path
):
    made = untrained(tmp_path / "run")
    made.student.config._name_or_path = str(base)
    made.push_to_hub(license="mit")
    assert published(hub) == ["mit", None, None]
    assert "LICENSE" not in hub.names("me/small")
    made.push_to_hub()
    assert published(hub) == ["other", "own", "LICENSE"]
    assert "LICENSE" in hub.names("me/small")


def test_the_command_leaves_the_text_of_a_licence_that_it_replaces(hub, base, capsys, caplog):
    push(base)
    assert "LICENSE" in hub.names("me/small")
    capsys.readouterr()
    for flags in (["--license", "mit"], []):  # the second time the card says so already
        push(base, *flags)
        assert published(hub) == ["mit", None, None]
        assert "LICENSE" not in hub.names("me/small")
        assert "not sent: LICENSE" in " ".join(capsys.readouterr().out.split())
        assert "license_link: LICENSE" in caplog.text  # how it would go along
    assert (base / "LICENSE").read_text() == "You may."


@pytest.mark.parametrize("card", [None, b"---\nlicense: mit\n---\n"])
def test_a_text_there_that_no_card_linked_to_is_somebodys_own_and_stays(hub, base, card):
    files = {"LICENSE": b"Written there.", **({} if card is None else {"README.md": card})}
    hub.add_repo("me/small", files)
    push(base, "--license", "mit")
    assert hub.repos["me/small"].files()["LICENSE"] == b"Written there."


@pytest.mark.parametrize(("method", "status"), [("HEAD", 503), ("GET", None)])
def test_a_card_there_that_cannot_be_read_for_a_moment_is_read_again(hub, base, method, status):
    push(base)
    ModelCard.load("me/small")  # what this machine has kept of it is not asked
    hub.fail(method, "/resolve/main/README.md", status, times=2)
    push(base, "--license", "mit")
    assert hub.faults == []
    assert "LICENSE" not in hub.names("me/small")


def test_nothing_is_sent_where_the_card_there_cannot_be_read(hub, base):
    push(base)
    hub.fail("HEAD", "/resolve/main/README.md", 500, times=100)
    with pytest.raises(SystemExit, match="could not be written"):
        push(base, "--license", "mit")
    assert hub.repos["me/small"].messages == ["initial commit", "Upload model"]
