"""The commands leave a whole card for every task of GLUE, whichever trainer made the model."""

import math
import re
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.utils import validate_repo_id
from kinds import TINY
from loopback import loopback
from scipy.stats import rankdata
from settings import ARGUMENTS
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

import kdnlp
from kdnlp.cli import main
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.synthetic import build_config, build_tokenizer
from kdnlp.evaluation import plots
from kdnlp.evaluation.report import CompressionReport
from kdnlp.hub.card import build_card
from kdnlp.uploads.card_check import check_card

BASE = "me/encoder"
ONE, TWO = ("validation",), ("validation_matched", "validation_mismatched")
TRAIN_ROWS, EVAL_ROWS = 12, 24
WORDS = ("the", "movie", "was", "dull", "great", "acting", "plot", "judge")


@dataclass(frozen=True)
class Facts:
    """What GLUE's paper and the Hub's dataset say of a task."""

    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: tuple[str, ...] = ONE


PAIR, ACCURACY, BOTH = ("sentence1", "sentence2"), ("accuracy",), ("f1", "accuracy")
YES_NO, NO_YES = ("entailment", "not_entailment"), ("not_entailment", "entailment")
GLUE = {
    "cola": Facts(("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
    "sst2": Facts(("sentence",), ("negative", "positive"), ACCURACY),
    "mrpc": Facts(PAIR, ("not_equivalent", "equivalent"), BOTH),
    "stsb": Facts(PAIR, (), ("pearson", "spearmanr")),
    "qqp": Facts(("question1", "question2"), ("not_duplicate", "duplicate"), BOTH),
    "mnli": Facts(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ACCURACY, TWO
    ),
    "qnli": Facts(("question", "sentence"), YES_NO, ACCURACY),
    "rte": Facts(PAIR, YES_NO, ACCURACY),
    "wnli": Facts(PAIR, NO_YES, ACCURACY),
}

# By command: the method, what the report calls the model, what is cited and what the flags are.
MADE = {
    "finetune": ("fine-tuning", "model", [], ("--model", BASE)),
    "theseus": ("theseus", "successor", ["xu2020bert"], ("--predecessor",)),
    "distill": ("distillation", "student", ["hinton2015distilling"], ("--teacher",)),
}

# Each metric once more, in another form than the library's.
FORMULAS = {
    "accuracy": lambda answers, labels: np.mean(answers == labels),
    "f1": lambda answers, labels: 2 * (answers * labels).sum() / (answers + labels).sum(),
    "matthews_correlation": lambda answers, labels: np.corrcoef(answers, labels)[0, 1],
    "pearson": lambda answers, labels: np.corrcoef(answers, labels)[0, 1],
    "spearmanr": lambda answers, labels: np.corrcoef(rankdata(answers), rankdata(labels))[0, 1],
}


def draw_rows(task, split, count):
    """A few rows in the Hub's layout; in every split other ones."""
    rng, facts = Random(f"{task}/{split}"), GLUE[task]
    texts = {
        column: [" ".join(rng.choices(WORDS, k=5)) for _ in range(count)]
        for column in facts.columns
    }
    if facts.labels:
        kind = ClassLabel(names=list(facts.labels))
        labels = [rng.randrange(len(facts.labels)) for _ in range(count)]
    else:
        kind, labels = Value("float32"), [rng.uniform(0, 5) for _ in range(count)]
    features = Features({**dict.fromkeys(texts, Value("string")), "label": kind})
    return Dataset.from_dict({**texts, "label": labels}, features=features)


def save_encoder(folder):
    """A pretrained encoder whose weights are wide, so that its answers differ from row to row."""
    torch.manual_seed(0)
    config = build_config(2, **TINY)
    config.initializer_range = 0.5
    BertModel(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A Hub with an encoder, and a folder with GLUE's nine tasks."""
    root = tmp_path_factory.mktemp("glue-cards")
    save_encoder(root / "encoder")
    for name, facts in GLUE.items():
        (root / "glue" / name).mkdir(parents=True)
        for split in ("train", *facts.splits):
            rows = draw_rows(name, split, TRAIN_ROWS if split == "train" else EVAL_ROWS)
            rows.to_parquet(root / "glue" / name / f"{split}.parquet")
    with pytest.MonkeyPatch.context() as patch, loopback(patch, root) as server:
        files = {path.name: path.read_bytes() for path in (root / "encoder").iterdir()}
        server.add_repo(BASE, files)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr(plots, "save_plots", lambda report, folder: None)
        yield root


@pytest.fixture(scope="module", params=GLUE)
def made(request, root):
    """What every command leaves for a task: first the fine-tuned model, then smaller ones of it."""
    task, cells = request.param, {}
    shared = ("--task", task, "--data_dir", str(root / "glue"), "--use_cpu", "--max_steps", "3")
    shared += ("--learning_rate", "1e-3", "--disable_tqdm", "true", "--save_strategy", "no")
    finetuned = root / "finetune" / task
    for command, (_, name, _, source) in MADE.items():
        folder = root / command / task
        flags = source
        if command != "finetune":
            flags += (str(finetuned), "--report_seconds", "0.05", "--no_baseline")
        main([command, *flags, *shared, "--output_dir", str(folder)])
        cells[command] = SimpleNamespace(
            task=task,
            facts=GLUE[task],
            command=command,
            folder=folder,
            name=name,
            card=ModelCard.load(folder / "README.md"),
            metadata=yaml.safe_load((folder / "README.md").read_text().split("---\n")[1]),
        )
    return cells


@pytest.fixture(params=MADE)
def cell(request, made):
    """One trainer on one task."""
    return made[request.param]


def leaves(value):
    """Every plain value of nested metadata."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        assert value
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def answers_of(cell, rows):
    """What the saved model answers, loaded as anyone would, as class ids or numbers."""
    model = AutoModelForSequenceClassification.from_pretrained(cell.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(cell.folder)
    texts = [rows[column][:] for column in cell.facts.columns]
    with torch.inference_mode():
        logits = model(**tokenizer(*texts, padding=True, return_tensors="pt")).logits
    if not cell.facts.labels:
        return logits.squeeze(-1).numpy()
    assert tuple(model.config.id2label.values()) == cell.facts.labels
    return logits.argmax(-1).numpy()


def test_the_table_holds_every_task_and_every_trainer():
    assert set(GLUE) == set(GLUE_TASKS)
    trained = {getattr(kdnlp, trainer).method for trainer in ARGUMENTS}
    assert trained == {method for method, *_ in MADE.values()}


def test_the_card_validates_and_leaves_no_field_open(cell):
    card = check_card((cell.folder / "README.md").read_text(encoding="utf-8"))
    card.validate()
    for value in leaves(cell.metadata):
        assert value not in (None, "", "None")
    prose = re.sub(r"^```.*?^```", "", card.text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"\{\{|\{%|\b(None|nan|inf|undefined)\b|\[\]|more information", prose)
    for row in re.findall(r"^\| (.*) \|$", prose, flags=re.MULTILINE):
        assert all(part.strip() for part in row.split(" | ")), row


def test_the_metadata_are_those_of_the_task(cell):
    data = dict(cell.metadata)
    (index,) = data.pop("model-index")
    assert data == {
        "base_model": BASE,
        "base_model_relation": "finetune",
        "datasets": ["nyu-mll/glue"],
        "language": "en",
        "library_name": "transformers",
        "license": "mit",
        "metrics": list(cell.facts.metrics),
        "pipeline_tag": "text-classification",
        "tags": ["kdnlp", MADE[cell.command][0]],
    }
    for repo_id in (data["base_model"], *data["datasets"]):
        validate_repo_id(repo_id)
    assert index["name"] == cell.task
    assert [(r["task"], r["dataset"]) for r in index["results"]] == [
        (
            {"type": "text-classification"},
            {
                "type": "nyu-mll/glue",
                "name": f"GLUE {cell.task}",
                "config": cell.task,
                "split": split,
            },
        )
        for split in cell.facts.splits
    ]
    for result in index["results"]:
        assert [metric["type"] for metric in result["metrics"]] == list(cell.facts.metrics)


def test_the_card_shows_what_the_saved_model_scores_on_every_split(cell):
    card = cell.card
    given = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert all(isinstance(result, EvalResult) for result in card.data.eval_results)
    assert set(given) == {(s, m) for s in cell.facts.splits for m in cell.facts.metrics}
    if cell.task == "mnli":  # else one split's value could stand for the other's
        assert len(set(given.values())) == 2
    for split in cell.facts.splits:
        rows = draw_rows(cell.task, split, EVAL_ROWS)
        answers, labels = answers_of(cell, rows), np.array(rows["label"][:])
        assert len(set(answers)) > 1  # else many a wrong value would be 0 too
        for metric in cell.facts.metrics:
            value = given[split, metric]
            assert math.isfinite(value)
            assert value == pytest.approx(FORMULAS[metric](answers, labels), abs=2e-5)
            where = f" ({split})" if len(cell.facts.splits) > 1 else ""
            row = re.search(rf"^\| {re.escape(f'{metric}, %{where}')} \|.*", card.text, re.M)
            shown = row[0].removesuffix(" |").split(" | ")[-1]
            assert float(shown) == pytest.approx(100 * value, abs=0.051)


def test_the_text_says_what_goes_in_what_comes_out_and_whom_to_cite(cell, root):
    text, facts = cell.card.text, cell.facts
    call = "tokenizer(first, second)" if len(facts.columns) == 2 else "tokenizer(text)"
    columns = " and ".join(f"`{column}`" for column in facts.columns)
    assert f"Input: {columns}, as `{call}`, cut at 64 tokens in training." in text
    if facts.labels:
        assert f"Labels: {', '.join(facts.labels)}. Input" in text
    else:
        assert "Labels" not in text
        assert "The only logit is the predicted number." in text
    one_of_two = "f1" in facts.metrics
    assert f"F1 of the class {facts.labels[-1]}" in text if one_of_two else "F1 of" not in text
    assert f"| data | `nyu-mll/glue`, {cell.task}, {TRAIN_ROWS} rows for training |" in text
    assert f"of the split{'s' if len(facts.splits) > 1 else ''} {', '.join(facts.splits)}," in text
    _, _, cited, _ = MADE[cell.command]
    assert re.findall(r"^@\w+\{(\w+),", text, flags=re.MULTILINE) == [*cited, "wang2019glue"]
    origin = f"`{BASE}` on the Hub, at revision `"
    if cell.command != "finetune":
        origin = f"`{cell.task}`, a local folder, made from `{BASE}` |"
    assert origin in text
    for only_of_several in ("In brackets: how many", "the models taking turns"):
        assert (only_of_several in text) == (cell.command != "finetune")
    assert re.search(rf"^kdnlp {cell.command} .*--task {cell.task} ", text, flags=re.MULTILINE)
    assert str(root) not in cell.card.content


def test_of_an_original_that_is_no_better_than_chance_nothing_is_kept(made):
    """A share of 0, or of a correlation below it, would be no number."""
    cell = made["theseus"]
    values = CompressionReport.load(cell.folder).to_dict()
    score = 0.0 if cell.facts.metrics[-1] == "accuracy" else -0.25
    for split in values["models"][0]["metrics"].values():
        split.update(dict.fromkeys((*cell.facts.metrics, "score"), score))
    card = build_card(CompressionReport.from_dict(values), cell.name, "me/small")
    assert "It keeps" not in card.text
    assert "| score kept, % | - | - |" in card.text
