"""Each kind of task is loaded with its own head, and a head of another kind is not taken for it."""

import pytest
import torch
import transformers
from kinds import kind_task, save_encoder, tiny_head

from kdnlp.data.preparation import KINDS
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.models.pretrained import in_model_order, load_finetuned, load_for_finetuning


def save(folder, model):
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_gets_the_head_of_the_kind_and_comes_back_with_it(kind, encoder, tmp_path):
    task = kind_task(kind)
    model, tokenizer = load_for_finetuning(encoder, task)
    assert type(model) is type(tiny_head(kind))
    assert model.config.num_labels == task.num_labels
    assert model.config.problem_type == KINDS[kind].problem_type
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_finetuned(tmp_path, task)
    assert type(again) is type(model)
    assert in_model_order(task, again.config) == task
    state = again.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["token_classification", "question_answering"])
def test_a_random_head_is_not_taken_for_what_the_model_has_learned(kind, encoder, tmp_path):
    task = kind_task(kind)
    bare = transformers.AutoModel.from_pretrained(encoder)
    if task.label_names:
        bare.config.id2label = dict(enumerate(task.label_names))
    with pytest.raises(ValueError, match=r"its weights lack (classifier|qa_outputs)\."):
        load_finetuned(save(tmp_path, bare), task)


def test_a_model_for_classes_that_exclude_each_other_is_none_for_several_labels(tmp_path):
    model = tiny_head("multi_label_classification")
    model.config.problem_type = "single_label_classification"
    task = kind_task("multi_label_classification")
    with pytest.raises(
        ValueError, match="for multi_label_classification, got one for single_label"
    ):
        load_finetuned(save(tmp_path, model), task)


def test_a_reader_can_start_from_a_model_of_any_number_of_labels(tmp_path):
    save(tmp_path, tiny_head("token_classification"))
    model, _ = load_for_finetuning(tmp_path, kind_task("question_answering"))
    assert model.qa_outputs.weight.shape[0] == 2
    with pytest.raises(ValueError, match="expected the labels start and end, got 7"):
        load_finetuned(tmp_path, kind_task("question_answering"))


def test_a_tagger_that_numbers_its_tags_otherwise_is_read_in_its_own_order(tmp_path):
    task, model = kind_task("token_classification"), tiny_head("token_classification")
    names = tuple(reversed(task.label_names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    loaded, _ = load_finetuned(save(tmp_path, model), task)
    assert in_model_order(task, loaded.config).label_names == names
