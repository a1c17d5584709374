import logging

import pytest
import torch
from settings import NO_DROPOUT, arguments, tiny_batch, tiny_dataset, tiny_model
from transformers import BertConfig

from kdnlp.models.alignment import align_labels, check_inputs, check_vocabulary, input_names
from kdnlp.models.student import build_student
from kdnlp.trainers.distillation import DistillationTrainer

THREE = ["entailment", "neutral", "contradiction"]


def config(labels, **values):
    names = dict(enumerate(labels))
    return BertConfig(id2label=names, label2id={v: k for k, v in names.items()}, **values)


def permuted(model, order, names=None):
    """The same model with its labels in another order, and perhaps other spellings."""
    labels = [model.config.id2label[n] for n in order] if names is None else names
    twin = tiny_model("bert", num_labels=len(order), **NO_DROPOUT)
    twin.config.id2label = dict(enumerate(labels))
    twin.config.label2id = {name: n for n, name in enumerate(labels)}
    state = model.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][order]
    twin.load_state_dict(state)
    return twin


def three_label_model():
    names = dict(enumerate(THREE))
    labels = {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    return tiny_model("bert", **labels, **NO_DROPOUT)


def trainer_of(student, teacher, folder, **options):
    args = arguments("DistillationTrainer", folder, loss_weights="logits=1", temperature=1.0)
    return DistillationTrainer(
        student, teacher, args, **{"train_dataset": tiny_dataset(), **options}
    )


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def test_the_order_says_where_the_teacher_keeps_each_of_the_students_labels():
    teacher = ["contradiction", "entailment", "neutral"]  # A cycle: no order is its own inverse.
    order = align_labels(config(teacher), config(THREE))
    assert order == [1, 2, 0]
    assert [teacher[index] for index in order] == THREE


@pytest.mark.parametrize("labels", [THREE, [name.upper() for name in THREE]])
def test_labels_in_one_order_are_left_alone_and_no_one_is_warned(labels, caplog):
    assert align_labels(config(labels), config(THREE)) is None
    assert not caplog.records


def test_labels_match_whatever_their_case(caplog):
    order = align_labels(config(["CONTRADICTION", "Neutral", "entailment"]), config(THREE))
    assert order == [2, 1, 0]
    assert "in the order [2, 1, 0]" in caplog.text


def test_more_than_ten_labels_are_not_sorted_as_text():
    names = [f"intent {n}" for n in range(12)]
    shuffled = names[6:] + names[:6]
    order = align_labels(config(shuffled), config(names))
    assert [shuffled[index] for index in order] == names
    teacher = config(names)
    teacher.id2label = {n: teacher.id2label[n] for n in reversed(range(12))}
    assert align_labels(teacher, config(names)) is None


@pytest.mark.parametrize("generic", ["teacher", "student"])
def test_unnamed_labels_are_taken_in_order_with_a_warning(generic, caplog):
    numbered = config(["LABEL_0", "LABEL_1", "LABEL_2"])
    pair = (numbered, config(THREE)) if generic == "teacher" else (config(THREE), numbered)
    with caplog.at_level(logging.WARNING):
        assert align_labels(*pair) is None
    assert "taking them to be in the same order" in caplog.text
    assert "label_2" in caplog.text
    assert "contradiction" in caplog.text


def test_two_unnamed_models_agree_silently(caplog):
    assert align_labels(BertConfig(num_labels=3), BertConfig(num_labels=3)) is None
    assert align_labels(BertConfig(num_labels=1), BertConfig(num_labels=1)) is None
    assert not caplog.records


def test_numbered_labels_in_another_order_are_names_like_any_other():
    shuffled = config(["LABEL_2", "LABEL_0", "LABEL_1"])
    assert align_labels(shuffled, BertConfig(num_labels=3)) == [1, 2, 0]


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (["negative", "positive"], ["no", "yes"]),
        (["no", "maybe"], ["no", "yes"]),
        (["yes", "LABEL_1"], ["no", "yes"]),
        (["yes", "no", "no"], ["no", "yes", "no"]),
        (["yes", "yes", "no"], ["no", "no", "yes"]),
    ],
)
def test_labels_that_cannot_be_told_apart_by_name_are_refused(teacher, student):
    with pytest.raises(ValueError, match="matched by name"):
        align_labels(config(teacher), config(student))


@pytest.mark.parametrize("labels", [THREE[:2], [*THREE, "other"], ["LABEL_0"]])
def test_another_number_of_labels_is_refused(labels):
    with pytest.raises(ValueError, match=rf"the teacher has {len(labels)} .*, the student 3 "):
        align_labels(config(labels), config(THREE))


def test_another_vocabulary_is_refused():
    check_vocabulary(config(THREE, vocab_size=40), config(THREE, vocab_size=40))
    for teacher, student in ((40, 41), (41, 40)):
        message = f"the teacher has {teacher} token ids, the student {student}"
        with pytest.raises(ValueError, match=message):
            check_vocabulary(config(THREE, vocab_size=teacher), config(THREE, vocab_size=student))


COLUMNS = ["input_ids", "attention_mask", "token_type_ids", "labels", "sentence"]


def test_inputs_that_only_the_teacher_reads_are_refused():
    bert, distilbert = tiny_model("bert"), tiny_model("distilbert")
    with pytest.raises(ValueError, match=r"remove_columns\(\['token_type_ids'\]\)"):
        check_inputs(bert, distilbert, COLUMNS)
    check_inputs(distilbert, bert, COLUMNS)
    check_inputs(bert, bert, COLUMNS)


def test_columns_that_no_model_reads_and_absent_inputs_are_no_reason_to_refuse():
    bert, distilbert = tiny_model("bert"), tiny_model("distilbert")
    check_inputs(bert, distilbert, ["input_ids", "attention_mask", "labels", "label", "sentence"])
    check_inputs(bert, distilbert, [])


def test_labels_are_for_the_loss_and_no_input_of_the_teacher():
    teacher = tiny_model("bert")
    assert "labels" not in input_names(teacher.base_model)
    check_inputs(teacher, teacher.base_model, ["input_ids", "labels"])


def test_the_inputs_of_a_model_are_its_forwards_arguments():
    names = input_names(tiny_model("bert"))
    assert {"input_ids", "attention_mask", "token_type_ids", "labels"} <= names
    assert not names & {"self", "kwargs"}
    assert "token_type_ids" not in input_names(tiny_model("distilbert"))


# Through the trainer.


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
def test_a_permuted_teachers_logits_reach_the_loss_in_the_students_order(order, tmp_path):
    reference, batch = three_label_model(), tiny_batch()
    teacher = permuted(reference, order)
    expected = logits(reference, batch)
    torch.testing.assert_close(logits(teacher, batch), expected[:, order])
    trainer = trainer_of(build_student(reference, 2), teacher, tmp_path)
    outputs = trainer.partner_outputs(batch)
    torch.testing.assert_close(outputs["logits"], expected)


def test_a_student_that_equals_its_permuted_teacher_has_no_loss(tmp_path):
    student, batch = three_label_model(), tiny_batch()
    teacher = permuted(student, [2, 0, 1], ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"])
    trainer = trainer_of(student, teacher, tmp_path / "aligned")
    loss = trainer.compute_loss(student.train(), batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    trainer.label_order = None
    assert trainer.compute_loss(student, batch).item() > 1e-2


def test_an_unnamed_teacher_is_read_as_it_stands(tmp_path, caplog):
    reference, batch = three_label_model(), tiny_batch()
    teacher = permuted(reference, [0, 1, 2], ["LABEL_0", "LABEL_1", "LABEL_2"])
    trainer = trainer_of(build_student(reference, 2), teacher, tmp_path)
    assert "taking them to be in the same order" in caplog.text
    torch.testing.assert_close(trainer.partner_outputs(batch)["logits"], logits(reference, batch))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}, "by name"),
        ({"num_labels": 3, "id2label": {0: "no", 1: "yes", 2: "?"}}, "the student 2"),
        ({"vocab_size": 50}, "50 token ids, the student 40"),
    ],
)
def test_the_trainer_refuses_a_teacher_of_another_task_before_training(teacher, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(tiny_model("bert", 2), tiny_model("bert", **teacher), tmp_path)


def test_the_trainer_refuses_columns_that_would_be_dropped_on_the_way_to_the_teacher(tmp_path):
    data = tiny_dataset()
    teacher, student = tiny_model("bert"), tiny_model("distilbert")
    typed = data.add_column("token_type_ids", data["attention_mask"])
    with pytest.raises(ValueError, match="token_type_ids, which BertForSequenceClassification"):
        trainer_of(student, teacher, tmp_path, train_dataset=typed)
    trainer_of(student, teacher, tmp_path, train_dataset=data)
