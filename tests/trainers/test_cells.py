"""Every loss on every kind of task: it trains as it should, or says why it cannot."""

import pytest
import torch
import transformers
from datasets import Dataset
from settings import (
    CELLS,
    LOSS_ROWS,
    SENSIBLE_CELLS,
    TASK_ROWS,
    arguments,
    build_cell,
    task_dataset,
    task_model,
    tiny_model,
)

from kdnlp.losses import LOSSES
from kdnlp.models.heads import TASK_KINDS, as_items, task_kind
from kdnlp.trainers.base import CompressionTrainer
from kdnlp.trainers.distillation import DistillationTrainer

TASK = pytest.mark.parametrize("task", TASK_ROWS)


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize(("loss", "task"), SENSIBLE_CELLS)
def test_a_loss_on_a_task_trains_exactly_resumes_bit_equal_and_saves_plain(loss, task, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = build_cell(loss, task, tmp_path / "whole", per_device_train_batch_size=8, **settings)
    before = {n: p.clone() for n, p in whole.student.named_parameters()}
    whole.train()
    assert any(not p.equal(before[n]) for n, p in whole.student.named_parameters())
    constant = f"the loss is 0 on {task}: leave it out of its tasks, or it teaches nothing"
    assert all(value > 0 for value in history(whole, "loss_loss")), constant

    if not LOSS_ROWS[loss].of_the_batch:
        parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        accumulated = build_cell(loss, task, tmp_path / "parts", **parts)
        accumulated.train()
        for key in ("loss", "grad_norm", "loss_task", "loss_loss"):
            expected = history(whole, key)
            assert len(expected) == 3
            assert history(accumulated, key) == pytest.approx(expected, rel=1e-4, abs=1e-6), (
                f"{key}: check the loss's mask and unit, or set of_the_batch=True in LOSS_ROWS"
            )

    again = build_cell(loss, task, tmp_path / "again", per_device_train_batch_size=8, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    theirs = whole.student.state_dict()
    assert all(tensor.equal(theirs[n]) for n, tensor in again.student.state_dict().items())

    again.save_model(str(tmp_path / "saved"))
    model_class = getattr(transformers, TASK_ROWS[task].model_class)
    loaded, info = model_class.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["missing_keys"]
    assert all(tensor.equal(theirs[n]) for n, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(("loss", "task"), [cell for cell in CELLS if cell not in SENSIBLE_CELLS])
def test_a_loss_that_makes_no_sense_on_a_task_is_refused_with_the_tasks_it_is_for(
    loss, task, tmp_path
):
    with pytest.raises(ValueError, match=rf"{LOSSES[loss].__name__} teaches .* kind '{task}'"):
        build_cell(loss, task, tmp_path)


def test_every_kind_of_task_is_driven_by_the_suite():
    assert set(TASK_ROWS) == set(TASK_KINDS)


@TASK
def test_the_kind_of_task_is_read_off_the_head(task):
    assert task_kind(task_model(task)) == task


def test_a_class_of_the_users_own_counts_as_what_it_derives_from():
    class Tagger(transformers.BertForTokenClassification):
        pass

    assert task_kind(Tagger(task_model("token_classification").config)) == "token_classification"
    assert task_kind(tiny_model("bert", 1, num_labels=1, id2label={0: "x"})) == "regression"


def batch_of(task, rows=6):
    data = task_dataset(task, rows).with_format("torch")[:]
    return {name: torch.as_tensor(values) for name, values in data.items()}


@TASK
def test_logits_labels_and_mask_of_the_items_fit_together(task):
    model, batch = task_model(task), batch_of(task)
    with torch.no_grad():
        outputs = model(**batch)
    items, batch = as_items(outputs, batch, task)
    mask = batch.get("item_mask")
    assert mask is None or mask.shape == items["logits"].shape[:-1]
    if not batch["labels"].is_floating_point():
        assert batch["labels"].shape == items["logits"].shape[:-1]
        counted = batch["labels"] if mask is None else batch["labels"][mask]
        assert ((counted >= 0) & (counted < items["logits"].size(-1))).all()


@pytest.mark.parametrize("task", [t for t in TASK_ROWS if not t.startswith("multi_label")])
def test_the_models_own_loss_is_the_cross_entropy_of_the_items(task):
    """What pins the shift of causal models and the two answers of question answering."""
    if task == "regression":
        pytest.skip("it has no classes")
    model, batch = task_model(task), batch_of(task)
    with torch.no_grad():
        outputs = model(**batch)
    items, prepared = as_items(outputs, batch, task)
    losses = torch.nn.functional.cross_entropy(
        items["logits"].flatten(0, -2), prepared["labels"].flatten(), reduction="none"
    )
    mask = prepared.get("item_mask")
    counted = losses if mask is None else losses[mask.flatten()]
    # Padding is no answer here, and a little probability to the model.
    exact = {"rel": 1e-5} if task != "question_answering" else {"rel": 0.5}
    assert counted.mean().item() == pytest.approx(outputs.loss.item(), **exact)


@pytest.mark.parametrize("task", ["token_classification", "masked_lm", "causal_lm", "seq2seq_lm"])
def test_a_micro_batch_without_any_label_adds_nothing_and_no_nan(task, tmp_path):
    # Every third row has no label, and micro-batches of one row meet it alone.
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    trainer = build_cell("logits", task, tmp_path, **one, logging_nan_inf_filter=False)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(history(trainer, "loss"))))
    assert all(torch.isfinite(p).all() for p in trainer.student.parameters())


def ignoring(task):
    """The task's data with labels that do not count, unevenly among the micro-batches."""
    data = task_dataset(task)
    columns = {name: data[name][:] for name in data.column_names}
    for name in ("start_positions", "end_positions"):
        if name in columns:
            columns[name] = [99 if i % 5 in (0, 1) else v for i, v in enumerate(columns[name])]
    if "labels" in columns:
        columns["labels"] = [
            -100 if i % 5 in (0, 1) else v for i, v in enumerate(columns["labels"])
        ]
    return data.from_dict(columns)


@pytest.mark.parametrize("loss", ["logits", "decoupled", "label_smoothing"])
@pytest.mark.parametrize(
    "task", ["single_label_classification", "multiple_choice", "question_answering"]
)
def test_rows_whose_label_does_not_count_leave_the_mean_exact(loss, task, tmp_path):
    if task not in LOSSES[loss].tasks:
        pytest.skip("the loss is not for this task")
    runs = []
    for size, steps in ((8, 1), (2, 4)):
        trainer = build_cell(
            loss,
            task,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            logging_nan_inf_filter=False,
        )
        trainer.train_dataset = ignoring(task)
        trainer.train()
        runs.append(trainer)
    for key in ("loss", "grad_norm", "loss_task", "loss_loss"):
        one, accumulated = (history(trainer, key) for trainer in runs)
        assert one == pytest.approx(accumulated, rel=1e-4, abs=1e-6), key


CUT = 99
"""A position beyond the end of the text."""


def reader(folder, starts, ends, pad=0, **overrides):
    """A trainer of question answering on texts of 6 tokens, and the surprise at each answer."""
    ids = torch.arange(5, 5 + 6 * len(starts)).view(-1, 6)
    rows = {
        "input_ids": torch.nn.functional.pad(ids, (0, pad)).tolist(),
        "attention_mask": [[1] * 6 + [0] * pad] * len(ids),
        "start_positions": starts,
        "end_positions": ends,
    }
    rows = Dataset.from_dict(rows)
    args = arguments("CompressionTrainer", folder, **{"max_steps": 1, **overrides})
    model = task_model("question_answering", 2)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    surprises = [
        [-logits[row].log_softmax(-1)[at].item() for row, at in enumerate(positions) if at != CUT]
        for logits, positions in ((outputs.start_logits, starts), (outputs.end_logits, ends))
    ]
    return CompressionTrainer(model, args, train_dataset=rows, eval_dataset=rows), surprises


def test_ends_that_are_cut_off_teach_nothing_and_their_starts_do(tmp_path):
    trainer, (starts, _) = reader(tmp_path, [2], [CUT], max_steps=3)
    before = trainer.student.qa_outputs.weight.detach().clone()
    trainer.train()
    assert history(trainer, "loss_task")[0] == pytest.approx(starts[0], rel=1e-5)
    for_start, for_end = trainer.student.qa_outputs.weight
    assert not for_start.equal(before[0])
    assert for_end.equal(before[1])


def test_a_step_without_any_answer_has_no_loss_and_moves_nothing(tmp_path):
    trainer, _ = reader(tmp_path, [CUT] * 2, [CUT] * 2)
    before = {n: tensor.clone() for n, tensor in trainer.student.state_dict().items()}
    trainer.train()
    assert history(trainer, "loss") == history(trainer, "grad_norm") == [0.0]
    assert all(tensor.equal(before[n]) for n, tensor in trainer.student.state_dict().items())


def test_every_start_and_end_weighs_the_same_and_padding_is_no_answer(tmp_path):
    # The models' own loss weighs the one end as much as the three starts.
    for pad in (0, 4):
        trainer, (starts, ends) = reader(tmp_path / str(pad), [2, 1, 0], [CUT, 3, CUT], pad)
        expected = pytest.approx((sum(starts) + sum(ends)) / 4, rel=1e-5)
        assert trainer.evaluate()["eval_loss"] == expected
        trainer.train()
        assert history(trainer, "loss_task") == [expected]


def test_an_answer_in_the_padding_does_not_count(tmp_path):
    trainer, (starts, _) = reader(tmp_path, [2, 1], [CUT, CUT], pad=4)
    rows = trainer.train_dataset.remove_columns("end_positions")
    rows = rows.add_column("end_positions", [7, 9])
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(sum(starts) / 2, rel=1e-5)


def test_whole_answers_in_texts_without_padding_have_the_models_own_loss(tmp_path):
    trainer, _ = reader(tmp_path, [2, 1, 0], [3, 3, 5])
    with torch.no_grad():
        own = trainer.student(**trainer.train_dataset.with_format("torch")[:]).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=1e-5)
    trainer.train()
    assert history(trainer, "loss_task") == [pytest.approx(own, rel=1e-5)]


def test_a_batch_without_any_answer_is_left_out_of_the_evaluation_loss(tmp_path):
    trainer, (starts, ends) = reader(
        tmp_path, [CUT, 2, 1], [CUT, 4, CUT], per_device_eval_batch_size=1
    )
    expected = ((starts[0] + ends[0]) / 2 + starts[1]) / 2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_lists_of_real_labels_make_a_classifier_multi_label(tmp_path):
    model = task_model("single_label_classification")
    data = task_dataset("multi_label_classification")
    assert task_kind(model, data.features["labels"]) == "multi_label_classification"
    trainer = build_cell("logits", "single_label_classification", tmp_path)
    batch = batch_of("multi_label_classification")
    with pytest.raises(ValueError, match=r"Expected class ids as labels, got real numbers"):
        trainer.compute_loss(trainer.student.train(), batch)


def test_a_teacher_for_another_kind_of_task_is_refused(tmp_path):
    student = task_model("single_label_classification", 2)
    for task in ("multi_label_classification", "token_classification"):
        teacher = task_model(task)
        teacher.config.num_labels = 3
        with pytest.raises(ValueError, match=rf"a teacher for {task} and a student for single"):
            DistillationTrainer(
                student,
                teacher,
                arguments("DistillationTrainer", tmp_path),
                train_dataset=task_dataset("single_label_classification"),
            )
