"""A model is taken for fine-tuned only if it is, and its answers mean what the labels say."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from settings import tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import EvalPrediction, PreTrainedTokenizerFast

from kdnlp.data.preparation import prepare
from kdnlp.data.task import Task
from kdnlp.evaluation.metrics import build_compute_metrics
from kdnlp.models.pretrained import (
    head_config,
    in_model_order,
    load_as_saved,
    load_finetuned,
    load_for_finetuning,
)

PAIR = Task("pair", ("text",), ("different", "same"), ("f1", "accuracy"))
NLI = Task("nli", ("text",), ("entailment", "neutral", "contradiction"), ("accuracy",))
NUMBER = Task("number", ("text",), None, ("pearson",))


def tokenizer(**special):
    vocabulary = {name: number for number, name in enumerate(["<pad>", "<unk>", "<end>", "a", "b"])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def save(folder, model, pad_token="<pad>", **special):
    special = {"pad_token": pad_token, **special} if pad_token else special
    model.save_pretrained(folder)
    tokenizer(**special).save_pretrained(folder)
    return folder


def labels(*names):
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


def config_of(task):
    return {**labels(*(task.label_names or ())), **head_config(task)}


def test_a_fine_tuned_model_comes_back_whole_and_in_eval_mode(tmp_path):
    saved = tiny_model("bert", 2, **config_of(PAIR))
    model, loaded = load_finetuned(save(tmp_path, saved), PAIR)
    assert not model.training
    for name, tensor in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert loaded("a b")["input_ids"] == [3, 4]
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("task", [PAIR, NUMBER], ids=["classes", "regression"])
def test_a_random_head_is_not_taken_for_what_the_model_has_learned(task, tmp_path):
    whole = tiny_model("bert", 2, **config_of(task))
    whole.bert.config = whole.config
    save(tmp_path, whole.bert)
    with pytest.raises(ValueError, match=r"its weights lack classifier\.") as error:
        load_finetuned(tmp_path, task)
    assert f"kdnlp finetune --model {tmp_path} --task {task.name}" in str(error.value)


def test_a_part_of_the_head_that_is_missing_is_noticed(tmp_path):
    model = tiny_model("bert", 2, **config_of(PAIR))
    state = {k: v for k, v in model.state_dict().items() if k != "bert.pooler.dense.bias"}
    model.save_pretrained(tmp_path, state_dict=state)
    tokenizer(pad_token="<pad>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its weights lack bert\.pooler\.dense\.bias"):
        load_finetuned(tmp_path, PAIR)


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (("entailment", "neutral", "contradiction"), PAIR),
        (("different", "same"), NLI),
        (("negative", "positive"), PAIR),
        (("LABEL_0",), PAIR),
        (("different", "same"), NUMBER),
        (("LABEL_0", "LABEL_1"), NUMBER),
    ],
    ids=["more", "fewer", "other-names", "regression-head", "for-regression", "generic"],
)
def test_a_head_for_other_labels_is_refused(names, task, tmp_path):
    save(tmp_path, tiny_model("bert", 2, **labels(*names)))
    with pytest.raises(
        ValueError, match=f"not fine-tuned on {task.name}: expected the la"
    ) as error:
        load_finetuned(tmp_path, task)
    assert f"got {len(names)}: {', '.join(names).lower()}." in str(error.value)
    assert "kdnlp finetune --model" in str(error.value)


def test_a_regression_head_is_taken_for_a_regression(tmp_path):
    saved = tiny_model("bert", 2, **config_of(NUMBER))
    model, _ = load_finetuned(save(tmp_path, saved), NUMBER)
    assert model.config.num_labels == 1
    assert in_model_order(NUMBER, model.config) == NUMBER


def test_the_case_of_label_names_does_not_matter(tmp_path):
    save(tmp_path, tiny_model("bert", 2, **labels("Different", "SAME")))
    model, _ = load_finetuned(tmp_path, PAIR)
    assert in_model_order(PAIR, model.config) == PAIR


@torch.no_grad()
def balanced_model(task):
    """A random model that predicts more than one class."""
    model = tiny_model("bert", 2, **config_of(task))
    ids = torch.randint(2, 5, (60, 5), generator=torch.Generator().manual_seed(1))
    model.classifier.bias -= model(ids).logits.mean(0)
    return model


def renumber(model, order):
    """The same model with its classes numbered otherwise: its new class n is the old order[n]."""
    names = [model.config.id2label[number] for number in order]
    model.classifier.weight.data = model.classifier.weight.data[order]
    model.classifier.bias.data = model.classifier.bias.data[order]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    return model


def scores(folder, task):
    """The metrics of a saved model on rows that were prepared in the model's own order."""
    model, own_tokenizer = load_finetuned(folder, task)
    ordered = in_model_order(task, model.config)
    words = np.random.default_rng(0).choice(["a", "b", "<end>"], (60, 5))
    texts = [" ".join(row) for row in words]
    label = [task.label_names[(2 * t.count("a") + t.count("b")) % task.num_labels] for t in texts]
    splits = dict.fromkeys(
        ("train", "validation"), Dataset.from_dict({"text": texts, "label": label})
    )
    rows = prepare(splits, ordered, own_tokenizer)["validation"]
    with torch.no_grad():
        batch = rows.with_format("torch")[:]
        answers = model(**{k: v.long() for k, v in batch.items() if k != "labels"}).logits
    evaluation = EvalPrediction(answers.numpy(), batch["labels"].numpy())
    return build_compute_metrics(ordered)(evaluation), answers.argmax(1)


@pytest.mark.parametrize(
    ("task", "order"), [(PAIR, [1, 0]), (NLI, [1, 2, 0])], ids=["two", "three"]
)
def test_a_model_that_numbers_the_classes_its_own_way_has_the_same_scores(task, order, tmp_path):
    plain, other = (balanced_model(task) for _ in range(2))
    expected, predicted = scores(save(tmp_path / "plain", plain), task)
    got, renumbered = scores(save(tmp_path / "other", renumber(other, order)), task)
    assert got == pytest.approx(expected)
    assert torch.equal(torch.tensor(order)[renumbered], predicted)
    assert len(predicted.unique()) > 1
    assert 0.05 < expected["score"] < 0.95


def test_f1_in_another_order_is_still_that_of_the_tasks_class_1(tmp_path):
    model, _ = load_finetuned(
        save(tmp_path, renumber(tiny_model("bert", 1, **config_of(PAIR)), [1, 0])), PAIR
    )
    ordered = in_model_order(PAIR, model.config)
    assert ordered.label_names == ("same", "different")
    assert ordered.positive_class == 0
    # Of four pairs one is the same; a model that always says "different" finds none of them.
    logits = np.tile([0.0, 1.0], (4, 1))
    evaluation = EvalPrediction(logits, np.array([0, 1, 1, 1]))
    metrics = build_compute_metrics(ordered)(evaluation)
    assert (metrics["f1"], metrics["accuracy"]) == (0.0, 0.75)
    assert build_compute_metrics(PAIR)(evaluation)["f1"] > 0.8  # what the wrong task would say


def test_generic_label_names_are_taken_in_order_and_a_warning_says_so(tmp_path, caplog):
    save(tmp_path, tiny_model("bert", 2, **labels("LABEL_0", "LABEL_1")))
    with caplog.at_level(logging.WARNING, logger="kdnlp"):
        model, _ = load_finetuned(tmp_path, PAIR)
    assert "does not name its labels" in caplog.text
    assert "different, same" in caplog.text
    assert in_model_order(PAIR, model.config) == PAIR


def test_named_labels_give_no_warning(tmp_path, caplog):
    save(tmp_path, tiny_model("bert", 2, **config_of(PAIR)))
    with caplog.at_level(logging.WARNING, logger="kdnlp"):
        load_finetuned(tmp_path, PAIR)
    assert not caplog.records


@pytest.mark.parametrize("loader", [load_finetuned, load_for_finetuning])
def test_a_tokenizer_without_pad_pads_with_the_end_and_the_model_knows(loader, tmp_path):
    model = tiny_model("gpt2", 2, **config_of(PAIR), eos_token_id=2, pad_token_id=None)
    save(tmp_path, model, pad_token=None, eos_token="<end>")
    model, loaded = loader(tmp_path, PAIR)
    assert (loaded.pad_token, loaded.pad_token_id) == ("<end>", 2)
    assert model.config.pad_token_id == 2
    # The answer is read at the last token that is no padding: a longer batch does not change it.
    batch = loaded(["a b", "a b a b"], padding=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    alone = loaded(["a b"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        together = model.eval()(**batch).logits[0]
        assert torch.allclose(together, model(alone).logits[0], atol=1e-5)


def test_the_tokenizer_is_that_of_the_subfolder(tmp_path):
    saved = tiny_model("bert", 1, **config_of(PAIR))
    save(tmp_path / "one", saved, pad_token="<one>")
    assert load_finetuned(tmp_path, PAIR, subfolder="one")[1].pad_token == "<one>"
    save(tmp_path, saved, pad_token="<other>")
    assert load_finetuned(tmp_path, PAIR, subfolder="one")[1].pad_token == "<one>"
    with pytest.raises(FileNotFoundError, match=r"model in .*two, got a folder without config"):
        load_finetuned(tmp_path, PAIR, subfolder="two")


def test_a_pad_token_that_is_there_stays(tmp_path):
    saved = tiny_model("bert", 1, **config_of(PAIR))
    model, loaded = load_finetuned(save(tmp_path, saved, eos_token="<end>"), PAIR)
    assert (loaded.pad_token, model.config.pad_token_id) == ("<pad>", 0)


@pytest.mark.parametrize("task", [PAIR, NLI, NUMBER], ids=lambda task: task.name)
def test_an_encoder_gets_a_head_with_the_tasks_labels_and_loss(task, tmp_path):
    encoder = tiny_model("bert", 2).bert
    model, _ = load_for_finetuning(save(tmp_path, encoder), task)
    assert model.config.num_labels == task.num_labels
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], tensor), name
    if task.label_names is None:
        assert model.config.problem_type == "regression"
    else:
        assert model.config.id2label == dict(enumerate(task.label_names))
        assert model.config.label2id["neutral" if task is NLI else "same"] == 1
        assert model.config.problem_type == "single_label_classification"
    model.save_pretrained(tmp_path)
    again, _ = load_finetuned(tmp_path, task)
    assert in_model_order(task, again.config) == task


def test_a_head_for_as_many_labels_is_kept(tmp_path):
    saved = tiny_model("bert", 2, **labels("x", "y"))
    model, _ = load_for_finetuning(save(tmp_path, saved), PAIR)
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert model.config.id2label == {0: "different", 1: "same"}


def test_a_head_for_another_number_of_labels_gives_way_to_a_new_one(tmp_path):
    # The usual way to RTE and MRPC is by a model that was fine-tuned on MNLI.
    save(tmp_path, tiny_model("bert", 2, **config_of(NLI)))
    model, _ = load_for_finetuning(tmp_path, PAIR)
    assert model.classifier.weight.shape[0] == 2


def test_a_model_is_loaded_with_the_head_that_it_was_saved_with_or_refused(tmp_path):
    saved = tiny_model("bert", 2)
    saved.save_pretrained(tmp_path)
    loaded = load_as_saved(str(tmp_path), dtype=torch.bfloat16)
    assert type(loaded) is type(saved)
    assert not loaded.training
    assert torch.equal(loaded.classifier.weight, saved.classifier.weight.bfloat16())
    saved.bert.save_pretrained(tmp_path)
    assert type(load_as_saved(str(tmp_path))) is type(saved.bert)
    saved.config.architectures = ["BertForSequenceClassification"]
    saved.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lack classifier\.bias, classifier\.weight, which"):
        load_as_saved(str(tmp_path))
