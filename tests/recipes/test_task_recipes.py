"""The recipes for tagging and for question answering run on generated data and on a user's file."""

import importlib.util
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from kinds import kind_rows, plain_rows, save_encoder
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

from kdnlp.evaluation import plots

ROOT = Path(__file__).parents[2]
TINY = ("--max_steps", "3", "--use_cpu", "--disable_tqdm", "true", "--num_layers", "2")
RECIPES = {
    "token_classification": ("f1", "precision", "recall"),
    "question_answering": ("exact_match", "f1"),
}
MODELS = {
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("task-recipes")
    save_encoder(root / "encoder")
    for recipe in RECIPES:
        splits = kind_rows(recipe, 40)
        for split, rows in splits.items():
            text = json.dumps(plain_rows(rows))
            (root / f"{recipe}-{split}.json").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(root / "cache"))
        patch.setattr(plots, "save_plots", lambda report, folder: None)
        yield root


def run(recipe, root, out, *arguments):
    spec = importlib.util.spec_from_file_location(recipe, ROOT / "recipes" / f"{recipe}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags = ("--model", root / "encoder", "--output_dir", out, *TINY, *arguments)
    return module.main([str(flag) for flag in flags])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_goes_from_generated_data_to_a_small_model_and_its_card(recipe, root, capsys):
    out = root / f"{recipe}-generated"
    report = run(recipe, root, out, "--num_generated", "60", "--max_length", "24")
    assert [model.name for model in report.models] == ["teacher", "student", "baseline"]
    assert [model.num_layers for model in report.models] == [4, 2, 2]
    assert report.metric_names == RECIPES[recipe]
    assert list(report.run["losses"]) == ["logits"]
    assert (out / "report.md").read_text() in capsys.readouterr().out
    model, loading = MODELS[recipe].from_pretrained(out, output_loading_info=True)
    assert model.config.num_hidden_layers == 2
    assert not loading["missing_keys"]
    assert ModelCard.load(out / "README.md").data.pipeline_tag == recipe.replace("_", "-")
    assert (out / "_teacher").is_dir()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_reads_the_users_own_files(recipe, root):
    own = {
        "token_classification": ("--label_all_subwords", "--max_length", "48"),
        "question_answering": ("--max_length", "20", "--stride", "4", "--max_answer_length", "8"),
    }
    files = ("--train_file", root / f"{recipe}-train.json")
    files += ("--validation_file", root / f"{recipe}-validation.json")
    report = run(recipe, root, root / f"{recipe}-own", *files, *own[recipe])
    assert report.task == f"{recipe}-train"
    assert report.metric_names == RECIPES[recipe]
    labels = report.run["label_names"]
    assert set(labels) == (set() if recipe == "question_answering" else {
        "O", "B-AGENT", "I-AGENT", "B-PATIENT", "I-PATIENT", "B-TIME", "I-TIME"
    })  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_depth_that_cannot_be_is_refused_before_the_teacher_is_trained(recipe, root):
    out = root / f"{recipe}-deep"
    with pytest.raises(ValueError, match="num_layers must lie between 1 and the teacher's 4"):
        run(recipe, root, out, "--num_generated", "60", "--num_layers", "9")
    assert not (out / "_teacher").exists()
