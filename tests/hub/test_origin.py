"""A card names the model that it came from: which, at which revision, under which licence."""

import pytest
from huggingface_hub import ModelCard
from settings import TRAINER_ROWS, build_trainer, tiny_model
from transformers import AutoModelForSequenceClassification

from kdnlp.data.task import Task
from kdnlp.evaluation.report import CompressionReport
from kdnlp.hub.origin import describe_origin, origin_text
from kdnlp.hub.publish import publish_results
from kdnlp.loading import load_model
from kdnlp.uploads.license import License, check_stated, find_license

pytestmark = pytest.mark.usefixtures("undrawn")

TASK = Task("own", ("text",), ("no", "yes"), ("accuracy",), max_length=8)
SCORES = {"validation": {"accuracy": 0.8, "score": 0.8, "loss": 0.4}}


def card(**metadata):
    return (
        f"---\n{chr(10).join(f'{name}: {value}' for name, value in metadata.items())}\n---\n# x\n"
    )


def publish(folder, predecessor, place, **options):
    trainer = build_trainer(TRAINER_ROWS["theseus"], folder, predecessor, max_steps=3)
    trainer.train()
    trainer.save_model()
    models = {"predecessor": predecessor, "successor": trainer.student}
    metrics = dict.fromkeys(models, SCORES)
    publish_results(trainer, models, metrics, TASK, place, max_seconds=0.1, **options)
    return ModelCard.load(folder / "README.md")


def test_the_revision_and_the_licence_come_from_the_hub(hub, tmp_path):
    tiny_model("bert", 4).save_pretrained(tmp_path / "base")
    files = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    repo = hub.add_repo("org/base", {**files, "README.md": card(license="cc-by-4.0").encode()})
    base, _ = load_model(AutoModelForSequenceClassification, "org/base")
    revision = repo.branches["main"]
    repo.commit("main", {"README.md": card(license="mit").encode()}, "another licence since")
    made = publish(tmp_path / "run", base, "org/base")
    assert f"| predecessor | `org/base` on the Hub, at revision `{revision}` |" in made.text
    assert (made.data.base_model, made.data.license) == ("org/base", "cc-by-4.0")
    assert revision not in (tmp_path / "run" / "config.json").read_text()


def test_a_local_folder_hands_on_its_licence_and_what_it_was_made_from(tmp_path):
    place = tmp_path / "jane" / "mrpc"
    place.mkdir(parents=True)
    (place / "README.md").write_text(card(license="apache-2.0", base_model="google-bert/bert-base"))
    made = publish(tmp_path / "run", tiny_model("bert", 4), str(place))
    assert made.data.license == "apache-2.0"
    assert (made.data.base_model, made.data.base_model_relation) == (
        "google-bert/bert-base",
        "finetune",
    )
    assert "| `mrpc`, a local folder, made from `google-bert/bert-base` |" in made.text
    assert "jane" not in made.content


def test_weights_of_another_model_than_the_teachers_have_the_licence_of_that(tmp_path):
    for name, licence in (("teacher", "apache-2.0"), ("small", "cc-by-nc-4.0")):
        (tmp_path / name).mkdir()
        text = card(license=licence, base_model=f"org/{name}-base").replace("# x", f"# {name}")
        (tmp_path / name / "README.md").write_text(text)
    origin = {"student": str(tmp_path / "small")}
    made = publish(tmp_path / "run", tiny_model("bert", 4), str(tmp_path / "teacher"), **origin)
    assert (made.data.license, made.data.base_model) == ("cc-by-nc-4.0", "org/small-base")
    assert "`small` (made from `org/small-base`), trained on " in made.text
    assert "from `teacher` (made from `org/teacher-base`): 2 transformer blocks in pl" in made.text
    assert "| student | `small`, a local folder, made from `org/small-base` |" in made.text
    assert CompressionReport.load(tmp_path / "run").run["student"] == "org/small-base"


def test_a_folder_that_is_gone_is_not_told_as_a_place_on_the_hub():
    found = describe_origin("/home/jane/runs/mrpc/checkpoint-500")
    assert found == {"base_model": "checkpoint-500", "base_model_on_hub": False}


@pytest.mark.parametrize(
    ("heading", "named"),
    [
        ("all-MiniLM-L6-v2", {"base_model_title": "all-MiniLM-L6-v2"}),
        ("final", {}),
        ("A model of [mine](https://example.org)", {}),
    ],
)
def test_a_folder_is_called_as_its_own_card_calls_it(tmp_path, heading, named):
    place = tmp_path / "final"
    place.mkdir()
    (place / "README.md").write_text(f"---\n# a comment\nlicense: mit\n---\n\n# {heading}\n\n# b\n")
    found = describe_origin(str(place))
    assert found == {"base_model": "final", "base_model_on_hub": False, **named}
    assert origin_text(found) == f"`{named.get('base_model_title', 'final')}`"


def test_the_licence_that_is_asked_for_is_the_one(tmp_path):
    made = publish(tmp_path / "run", tiny_model("bert", 4), "org/base", license="mit")
    assert made.data.license == "mit"
    with pytest.raises(ValueError, match="Expected a licence's id"):
        publish(tmp_path / "more", tiny_model("bert", 4), "org/base", license="The MIT Licence")
    assert not (tmp_path / "more" / "report.json").exists()


OTHER = {"license": "other", "license_name": "own"}


def test_a_relative_link_to_the_text_of_a_licence_leads_to_the_base_on_the_hub(hub, tmp_path):
    readme = card(**OTHER, license_link="LICENSE.pdf").encode()
    hub.add_repo("org/base", {"README.md": readme})
    found = find_license("org/base", hub.repos["org/base"].branches["main"])
    at = f"{hub.endpoint}/org/base/blob/{hub.repos['org/base'].branches['main']}/LICENSE.pdf"
    assert found == License("other", "own", at)
    made = publish(tmp_path / "run", tiny_model("bert", 4), "org/base")
    assert made.data.license_link == f"{hub.endpoint}/org/base/blob/main/LICENSE.pdf"


def test_the_text_of_a_licence_in_a_folder_goes_along(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(card(**OTHER, license_link="./LICENSE.md"))
    assert find_license(str(base)) is None  # there is no text
    (base / "LICENSE.md").write_text("You may.")
    made = publish(tmp_path / "run", tiny_model("bert", 4), str(base))
    assert (made.data.license_name, made.data.license_link) == ("own", "LICENSE.md")
    assert (tmp_path / "run" / "LICENSE.md").read_text() == "You may."
    check_stated(made, tmp_path / "run")
    # Trained on in its own folder.
    find_license(str(base)).put_into(base)
    assert (base / "LICENSE.md").read_text() == "You may."


@pytest.mark.parametrize("link", ["LICENSE", "./LICENSE"])
def test_a_text_beside_the_card_is_found_whichever_way_the_card_links_to_it(tmp_path, link):
    (tmp_path / "README.md").write_text(card(**OTHER, license_link=link))
    made = ModelCard.load(tmp_path / "README.md")
    with pytest.raises(ValueError, match="does not go along"):
        check_stated(made, tmp_path)
    (tmp_path / "LICENSE").write_text("You may.")
    check_stated(made, tmp_path)
    assert find_license(str(tmp_path)) == License("other", "own", "LICENSE", tmp_path / "LICENSE")


@pytest.mark.parametrize("link", ["terms.txt", "../LICENSE", "/etc/passwd", "docs/LICENSE"])
def test_another_file_is_not_handed_on_as_the_text_of_a_licence(tmp_path, link, caplog):
    (tmp_path / "README.md").write_text(card(**OTHER, license_link=link))
    (tmp_path / "terms.txt").write_text("You may.")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "LICENSE").write_text("You may.")
    assert find_license(str(tmp_path)) is None
    assert "is not inherited" in caplog.text
    with pytest.raises(ValueError, match="does not go along"):
        check_stated(ModelCard.load(tmp_path / "README.md"), tmp_path)


def test_a_link_to_an_address_is_handed_on_as_it_is(tmp_path):
    link = "https://example.org/licence"
    (tmp_path / "README.md").write_text(card(**OTHER, license_link=link))
    found = find_license(str(tmp_path))
    assert found == License("other", "own", link)
    check_stated(ModelCard.load(tmp_path / "README.md"), tmp_path)


@pytest.mark.parametrize(
    "text",
    ["no metadata", "---\n[broken\n---\n", "---\n- a list\n---\n", card(license="[mit, gpl]")],
)
def test_a_card_that_says_nothing_of_use_is_no_error(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    found = set(describe_origin(str(tmp_path))) - {"base_model_title"}
    assert found == {"base_model", "base_model_on_hub"}
    assert find_license(str(tmp_path)) is None


def test_without_a_way_to_the_hub_the_licence_stays_unknown(tmp_path):
    assert find_license("org/base", "abc") is None
    assert find_license("") is None
    assert describe_origin("org/base", "abc") == {
        "base_model": "org/base",
        "base_model_on_hub": True,
        "base_model_revision": "abc",
    }


def test_a_folder_that_names_a_path_as_its_base_does_not_hand_it_on(tmp_path):
    (tmp_path / "README.md").write_text(card(base_model="/home/jane/model"))
    assert "base_model_from" not in describe_origin(str(tmp_path))
