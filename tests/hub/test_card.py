"""The card tells what the report says, validates, and gives nothing away."""

import math
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from settings import TRAINER_ROWS, build_trainer, tiny_model

from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.task import Task
from kdnlp.evaluation.report import CompressionReport
from kdnlp.evaluation.significance import PairedTest
from kdnlp.hub.card import build_card
from kdnlp.hub.publish import publish_results
from kdnlp.hub.sections import summary
from kdnlp.profiling.speedup import Speedup
from kdnlp.uploads.card_check import check_card

TASK = Task("own", ("text",), ("no", "yes"), ("accuracy",), max_length=8)


def scores(value, metrics=("accuracy",)):
    return {"validation": {**dict.fromkeys(metrics, value), "score": value, "loss": 0.4}}


@pytest.fixture(autouse=True)
def _undrawn(undrawn):
    """No report of these tests is drawn."""


def publish(row, folder, task=TASK, base_model="org/base", **overrides):
    partner = tiny_model("bert", 4)
    trainer = build_trainer(TRAINER_ROWS[row], folder, partner, max_steps=3, **overrides)
    trainer.train()
    trainer.save_model()
    models = {"predecessor": partner, "successor": trainer.student}
    metrics = {
        "predecessor": scores(0.8, task.metrics),
        "successor": scores(0.76, task.metrics),
    }
    report = publish_results(trainer, models, metrics, task, base_model, max_seconds=0.1)
    return trainer, report, ModelCard.load(folder / "README.md")


def test_the_card_points_out_a_speed_up_that_the_flops_do_not_explain(tmp_path):
    _, report, _ = publish("theseus", tmp_path)
    slow = Speedup(0.5, 0.49, 0.51, 0.95, 30)
    first, second = report.models
    rows = tuple(replace(row, speedup=slow) for row in second.latency)
    flagged = replace(report, models=(first, replace(second, latency=rows)))
    text = build_card(flagged, "successor", "me/small").text
    assert "FLOPs and latency disagree: successor, batch 1, 8 tokens: " in text
    assert "fewer FLOPs, 0.50x faster; it misses what they promise by" in text


def test_the_card_beside_the_model_has_metadata_that_the_hub_accepts(tmp_path):
    folder = tmp_path / "small-mrpc"
    _, report, card = publish("theseus", folder, GLUE_TASKS["mrpc"])
    assert CompressionReport.load(folder) == report
    data = card.data
    assert (data.base_model, data.library_name) == ("org/base", "transformers")
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["kdnlp", "theseus"]
    assert data.datasets == ["nyu-mll/glue"]
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("f1", 0.76),
        ("accuracy", 0.76),
    ]
    assert data.eval_results[0].dataset_config == "mrpc"
    assert (
        "![Score against median latency with its interval, and the Pareto front](report.png)"
        in card.text
    )
    assert "| accuracy, % | The share of predictions that equal" in card.text
    for part in ("from 4 to 2", "95.0%", "xu2020bert", "replacing_fraction", "2.00x fewer FLOPs"):
        assert part in card.text


def test_a_collapsed_model_is_not_praised_for_its_score(report):
    alike = {"validation": {"rows": 9.0, "one_answer": 1.0}}
    classes = {
        name: {"no": {"accuracy": no, "rows": 3.0}, "yes": {"accuracy": yes, "rows": 6.0}}
        for name, no, yes in (("predecessor", 1 / 3, 1.0), ("successor", 0.0, 1.0))
    }
    models = tuple(replace(m, classes={"validation": classes[m.name]}) for m in report.models)
    models = (models[0], replace(models[1], behaviour=alike))
    text = build_card(replace(report, models=models), "successor", "me/x").text
    assert (
        "It keeps 95.0% of the predecessor's score. But it gives every row of validation the same "
        "answer, yes: it tells no rows apart, and its score is what that answer gets"
    ) in text
    assert "### Accuracy per class, %, validation" in text
    assert "| no | 3 | 33.3 | 0.0 |\n| yes | 6 | 100.0 | 100.0 |" in text
    assert "successor gives every row" in text


def test_a_class_may_be_called_whatever_a_figure_may_not(report):
    rows = {"accuracy": 1.0, "rows": 3.0}
    classes = {"validation": dict.fromkeys(("None", "nan", "**", "``", "<pad>", "a|b"), rows)}
    models = tuple(replace(model, classes=classes) for model in report.models)
    arguments = {**report.run["arguments"], "max_grad_norm": math.inf}
    free = replace(report, models=models, run={**report.run, "arguments": arguments})
    text = build_card(free, "successor", "me/x").text
    for name in ("None", "nan", r"\*\*", r"\`\`", r"\<pad>", r"a\|b"):
        assert f"| {name} | 3 | 100.0 | 100.0 |" in text
    assert "| max_grad_norm | infinity |" in text


def test_the_losses_and_their_citations_are_named(tmp_path):
    _, _, card = publish("theseus-logits", tmp_path)
    assert "loss `logits`" in card.text
    assert "hinton2015distilling" in card.text
    assert card.text.count("@inproceedings{xu2020bert") == 1


def test_a_local_folder_is_not_named_as_a_place_on_the_hub(tmp_path):
    secret = tmp_path / "home" / "jane" / "my-predecessor"
    secret.mkdir(parents=True)
    _, _, card = publish("distillation", tmp_path / "out", base_model=str(secret))
    assert card.data.base_model is None
    assert "`my-predecessor`" in card.text
    assert "jane" not in card.content
    assert str(tmp_path) not in card.content


def test_a_checkpoint_chosen_on_the_measured_split_is_confessed(tmp_path):
    chosen = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    }
    _, report, card = publish("distillation", tmp_path, **chosen)
    assert report.run["selected_on"] == "loss"
    assert report.run["selected_on_split"] == "validation"
    assert "chosen by loss on the same split, which flatters it" in card.text


def test_the_card_of_the_original_claims_no_compression(tmp_path):
    _, report, _ = publish("theseus", tmp_path)
    text = build_card(report, "predecessor", "me/predecessor").text
    assert "compressed by" not in text
    assert 'from_pretrained("me/predecessor")' in text


def test_the_folder_of_the_cache_is_told_to_nobody(tmp_path):
    folder = str(tmp_path / "cache")
    cached = {"cache_teacher_outputs": True, "teacher_cache_dir": folder}
    _, report, card = publish("distillation", tmp_path / "out", **cached)
    assert report.run["arguments"]["teacher_cache_dtype"] == "float32"
    assert folder not in str(report.to_dict()) + card.content


def test_further_teachers_are_named_with_what_they_score_together(tmp_path):
    _, report, card = publish("distillation", tmp_path)
    assert "several teachers" not in card.text
    facts = {"ensemble_metrics": scores(0.84), "more_teachers": ["b", "me/c"]}
    text = build_card(replace(report, run={**report.run, **facts}), "successor", "me/x").text
    said = "the mean answer of several teachers, `org/base` and `b`, `me/c`, which scores 84.0%."
    assert said in text


def test_a_model_with_code_of_its_own_says_so_where_it_is_loaded(tmp_path):
    _, report, card = publish("theseus", tmp_path)
    assert "trust_remote_code" not in card.text
    assert report.run["remote_code"] is False
    own = replace(report, run={**report.run, "remote_code": True})
    text = build_card(own, "successor", "me/x").text
    assert text.count('("me/x", trust_remote_code=True)') == 2
    assert "Read it before you let it run." in text


@pytest.mark.parametrize("row", ["theseus", "distillation", "finetuning"])
def test_what_describes_the_run_holds_no_folder_and_no_token(row, tmp_path):
    _, report, _ = publish(row, tmp_path, hub_token="hf_secret")
    text = str(report.to_dict())
    assert "hf_secret" not in text
    assert str(tmp_path) not in text
    assert report.run["optimizer_steps"] == 3
    assert report.run["seed"] == 3


def glue_report(report, name):
    """The same report, of a run on another GLUE task."""
    task = GLUE_TASKS[name]
    values = {**dict.fromkeys(task.metrics, 0.5), "score": 0.5, "loss": 0.4}
    metrics = dict.fromkeys(task.eval_splits, values)
    facts = {
        "task_kind": task.kind,
        "text_columns": list(task.text_columns),
        "label_names": list(task.label_names or ()),
        "dataset": task.dataset,
    }
    return replace(
        report,
        task=name,
        metric_names=task.metrics,
        models=tuple(replace(model, metrics=metrics) for model in report.models),
        run={**report.run, **facts},
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return publish("theseus", tmp_path_factory.mktemp("run"))[1]


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_every_glue_task_has_a_whole_card(report, name):
    task = GLUE_TASKS[name]
    card = check_card(str(build_card(glue_report(report, name), "successor", "me/x")))
    assert card.data.language == "en"
    assert card.data.datasets == ["nyu-mll/glue"]
    assert len(card.data.eval_results) == len(task.metrics) * len(task.eval_splits)
    assert "wang2019glue" in card.text
    assert "not of its test server" in card.text


def paired(low, high, p, difference=0.06):
    return (PairedTest("successor", "baseline", difference, low, high, p, 9, 2, None, 99, 2000, 0),)


@pytest.mark.parametrize(
    ("baseline", "tests", "said"),
    [
        (
            0.70,
            paired(0.01, 0.11, 0.0312),
            "70.0% against 76.0%. The BERT-of-Theseus module replacement gained 6.0 points over it "
            "(95% interval +1.0 to +11.0, p = 0.031, by the paired bootstrap over rows).",
        ),
        (0.70, paired(0.01, 0.11, 0.0001), "p <0.001, by"),
        (0.79, paired(-0.05, -0.01, 0.01, -0.03), "replacement lost 3.0 points to it (95% int"),
        (
            0.759,
            paired(-0.02, 0.022, 0.9, 0.001),
            "replacement's +0.1 points over it are not told apart from chance (95% interval -2.0",
        ),
        (0.759, (), "That is +0.1 points for the BERT-of-Theseus module replacement; whether it"),
    ],
)
def test_what_the_method_gained_over_the_baseline_is_said_with_its_test(
    report, baseline, tests, said
):
    plain = replace(report["successor"], name="baseline", metrics=scores(baseline))
    with_both = replace(report, models=(*report.models, plain), tests=tests)
    assert said in build_card(with_both, "successor", "me/x").text


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("validation_matched", "chosen by score on validation_matched, which flatters it"),
        (None, "chosen by score on one of them, which flatters it"),
    ],
)
def test_the_one_split_that_chose_the_checkpoint_is_named(report, split, said):
    own = glue_report(report, "mnli")
    run = {**own.run, "selected_on": "score", "selected_on_split": split}
    assert said in build_card(replace(own, run=run), "successor", "me/x").text


def test_the_exact_command_is_shown_where_there_was_one(report):
    assert "made from Python, with the arguments above" in build_card(report, "successor", "x").text
    run = {**report.run, "command": "kdnlp theseus --task mrpc --seed 3"}
    text = build_card(replace(report, run=run), "successor", "x").text
    assert "```sh\nkdnlp theseus --task mrpc --seed 3\n```" in text


@pytest.mark.parametrize(
    ("speedup", "said"),
    [
        (Speedup(1.93, 1.9, 1.96, 0.95, 30), "1.93x at batch size 1 (95% interval 1.90x to 1.96x)"),
        (
            Speedup(1.2, 1.1, 1.3, 0.95, 30),
            "1.20x at batch size 1 (95% interval 1.10x to 1.30x, which is not what the FLOPs",
        ),
        (
            Speedup(16.46, 1.6, 17.2, 0.75, 3),
            "too noisy to tell at batch size 1 (75% interval 1.60x to 17.20x)",
        ),
        (None, "x at batch size 1, as a ratio of medians, which may be noise"),
    ],
)
def test_the_speed_up_of_the_summary_has_an_interval_or_is_called_noise(report, speedup, said):
    first, second = report.models
    rows = tuple(replace(row, speedup=speedup) for row in second.latency)
    noisy = replace(report, models=(first, replace(second, latency=rows)))
    text = summary(noisy, "successor")
    assert said in text
    assert "16.46" not in text


def test_the_speed_up_says_on_what_it_was_measured(report):
    assert f"on {report.setting.device}, 1 thread." in build_card(report, "successor", "x").text
    setting = replace(report.setting, device="NVIDIA H100", threads=8)
    text = build_card(replace(report, setting=setting), "successor", "x").text
    assert "Latency was measured on NVIDIA H100;" in text


def test_a_licence_that_is_given_comes_before_an_inherited_one(report):
    inherited = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    of_base = replace(report, run={**report.run, "license": inherited})
    data = build_card(of_base, "successor", "x").data
    assert (data.license, data.license_name, data.license_link) == ("other", "own", "LICENSE")
    data = build_card(of_base, "successor", "x", license="mit").data
    assert (data.license, data.license_name) == ("mit", None)
    with pytest.raises(ValueError, match="Expected a licence's id"):
        build_card(report, "successor", "x", license="MIT Licence")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_none_is_no_card(report, value):
    broken = tuple(replace(model, metrics=scores(0.5)) for model in report.models)
    broken[1].metrics["validation"]["accuracy"] = value
    with pytest.raises((ValueError, TypeError)):
        build_card(replace(report, models=broken), "successor", "x")


OPEN = {
    "an empty cell": "| score |  |",
    "a cell of dashes and none": "| a | None |",
    "not a number": "| accuracy | nan |",
    "code in a cell": "| seed | `None` |",
    "a template's field": "It keeps {{ kept }}.",
    "a template's statement": "{% if x %}",
    "the stock card's sentence": "More information needed",
}


@pytest.mark.parametrize("line", OPEN.values(), ids=OPEN)
def test_an_open_field_is_found(report, line):
    card = str(build_card(report, "successor", "x"))
    with pytest.raises(ValueError, match="every field filled"):
        check_card(f"{card}\n{line}\n")


@pytest.mark.parametrize(
    "text", ["| a | none |", "| loss | 0 |", "```\ntitle={{BERT}}\n```", "| a | b |\n| :-- | --: |"]
)
def test_what_only_looks_open_is_let_through(report, text):
    check_card(f"{build_card(report, 'successor', 'x')}\n{text}\n")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("library_name: transformers\n", "", "none for library_name"),
        ("library_name: transformers", "library_name: ''", "none for library_name"),
        ("- kdnlp\n", "- ''\n", "tags: "),
        ("  results:", "  outcomes:", "expected metadata that the Hub takes"),
        ("tags:\n", "tags: {\n", "expected metadata that the Hub takes"),
    ],
)
def test_metadata_that_the_hub_would_not_take_are_refused(report, before, after, said):
    card = str(build_card(report, "successor", "x"))
    assert before in card
    with pytest.raises(ValueError, match=said):
        check_card(card.replace(before, after))
