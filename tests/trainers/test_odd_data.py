"""Rows at the edge: too long, without tokens or labels, of one class, few, or none."""

import copy
import math

import datasets
import pytest
import torch
from settings import (
    NO_DROPOUT,
    TRAINER_ROWS,
    build_trainer,
    task_dataset,
    task_model,
    tiny_dataset,
    tiny_model,
)
from transformers import BartConfig, BartForConditionalGeneration

import kdnlp
from kdnlp.arguments import DistillationTrainingArguments, TheseusTrainingArguments
from kdnlp.models.positions import position_limit
from kdnlp.models.student import build_student

BOTH = pytest.mark.parametrize("name", ["distillation", "theseus-logits"])


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def with_column(dataset, name, values):
    return dataset.remove_columns(name).add_column(name, values)


def build(name, folder, train, evaluate=None, **overrides):
    options = {"train_dataset": train}
    if evaluate is not None:
        options["eval_dataset"] = evaluate
    overrides = {"max_steps": 3, **overrides}
    return build_trainer(TRAINER_ROWS[name], folder, trainer_options=options, **overrides)


def long_rows(length=9, row=5):
    ids = tiny_dataset(8)["input_ids"][:]
    ids[row] = [7] * length
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": [0, 1] * 4})


def pad(rows):
    """Collate, for a model without a tokenizer."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": [r["labels"] for r in rows]}
    return {name: torch.tensor(values) for name, values in batch.items()}


# Lengths.


@pytest.mark.parametrize(
    ("family", "config", "room"),
    [("bert", {"max_position_embeddings": 8}, 8), ("gpt2", {"n_positions": 8}, 8),
     ("roberta", {"max_position_embeddings": 10, "pad_token_id": 1}, 8), ("llama", {}, None),
     ("deberta-v2", {"position_biased_input": False}, None), ("t5-encoder", {}, None)],
)  # fmt: skip
def test_the_room_of_a_table_is_what_the_model_can_run(family, config, room):
    model = tiny_model(family, 1, **config)
    assert position_limit(model) == room
    if room is not None:
        ids = torch.full((1, room + 1), 7)
        model(input_ids=ids[:, :room], attention_mask=torch.ones_like(ids[:, :room]))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))


@BOTH
@pytest.mark.parametrize("streamed", [False, True])
def test_a_text_longer_than_the_table_of_positions_is_refused(name, streamed, tmp_path):
    rows = long_rows()
    train = rows.to_iterable_dataset() if streamed else rows
    partner = tiny_model("bert", 4, max_position_embeddings=8, **NO_DROPOUT)
    options = {"train_dataset": train, "data_collator": pad}
    trainer = build_trainer(
        TRAINER_ROWS[name], tmp_path, partner, trainer_options=options, max_steps=4
    )
    where = "Optimizer step 2, micro-batch 1" if streamed else "train_dataset, row 5"
    with pytest.raises(ValueError, match=rf"{where}: expected at most 8 tokens .* got 9"):
        trainer.train()


def test_labels_longer_than_the_decoder_s_table_are_refused(tmp_path):
    config = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=8,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    ids, labels = [[7] * 6] * 8, [[9] * 6] * 8
    labels[5] = [9] * 9
    rows = datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})
    args = DistillationTrainingArguments(str(tmp_path), max_steps=2, report_to="none", use_cpu=True)
    trainer = kdnlp.DistillationTrainer(
        model, copy.deepcopy(model), args, losses={}, train_dataset=rows, data_collator=pad
    )
    with pytest.raises(ValueError, match=r"row 5: expected at most 8 tokens in labels.* got 9"):
        trainer.train()


def test_a_row_without_tokens_is_refused(tmp_path):
    rows = long_rows(length=0, row=3)
    with pytest.raises(ValueError, match=r"row 3: expected at least one token, got none"):
        build("distillation", tmp_path, rows).train()


# Numbers of rows.


@BOTH
def test_no_rows_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"train_dataset: expected at least 1 row, got 0"):
        build(name, tmp_path, tiny_dataset().select([])).train()


def test_fewer_rows_than_the_batch_that_alone_is_trained_are_refused(tmp_path):
    trainer = build("distillation", tmp_path, tiny_dataset(3), dataloader_drop_last=True)
    with pytest.raises(ValueError, match=r"at least 4 rows for the 4 of a batch, .*, got 3"):
        trainer.train()


@pytest.mark.parametrize(
    "values",
    [{"dataloader_drop_last": True}, {"dataloader_persistent_workers": True}],
    ids=lambda values: next(iter(values)),
)
def test_an_evaluation_has_every_row_of_the_dataset_that_it_is_given(values, tmp_path):
    trainer = build("distillation", tmp_path, tiny_dataset(8), dataloader_num_workers=1, **values)
    first, other = tiny_dataset(7, seed=1), tiny_dataset(3, seed=2)
    assert [len(trainer.predict(rows).label_ids) for rows in (first, other)] == [7, 3]
    losses = [trainer.evaluate(rows)["eval_loss"] for rows in (first, other)]
    for rows, loss in zip((first, other), losses, strict=True):
        with torch.no_grad():
            expected = trainer.student(**rows.with_format("torch", device=trainer.args.device)[:])
        assert loss == pytest.approx(expected.loss.item(), abs=1e-5)
    assert {name: getattr(trainer.args, name) for name in values} == values


@BOTH
@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows_and_a_last_batch_of_one_train_as_they_would_accumulated(name, rows, tmp_path):
    # Five rows: a batch of four and one of one.
    runs = []
    for batch, accumulation in ((4, 1), (1, 4)):
        trainer = build(
            name, tmp_path / str(batch), tiny_dataset(rows), per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation, max_steps=4,
        )  # fmt: skip
        trainer.train()
        runs.append(trainer)
    assert all(map(math.isfinite, history(runs[0], "loss")))
    for key in ("loss", "grad_norm", "loss_task"):
        one, accumulated = (history(trainer, key) for trainer in runs)
        assert one == pytest.approx(accumulated, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["finetuning", "theseus-none"])
def test_the_end_of_a_stream_that_makes_no_whole_step_is_in_no_gradient(name, tmp_path, caplog):
    still = {"learning_rate": 0.0, "max_steps": 6, "gradient_accumulation_steps": 4}
    if name == "theseus-none":
        still["initial_replacing_rate"] = 1.0
    norms = []
    for rows in (8, 10):  # two steps a pass, and two micro-batches more
        trainer = build(
            name, tmp_path / str(rows), tiny_dataset(10).select(range(rows)).to_iterable_dataset(),
            per_device_train_batch_size=1, **still,
        )  # fmt: skip
        trainer.train()
        norms.append(history(trainer, "grad_norm"))
    assert len(norms[0]) == 6
    assert norms[0] == pytest.approx(norms[1])
    assert "last 2 micro-batches of the stream are fewer" in caplog.text


def test_a_stream_of_less_than_a_step_is_refused(tmp_path):
    rows = tiny_dataset(3).to_iterable_dataset()
    steps = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    trainer = build("finetuning", tmp_path, rows, **steps)
    with pytest.raises(ValueError, match=r"at least the 4 micro-batches .* got 3 in the whole"):
        trainer.train()


# Labels.


@pytest.mark.parametrize(
    ("task", "value", "words"),
    [
        ("single_label_classification", 3, r"class ids in 0\.\.2, or -100 .* got 3 in row 4"),
        ("single_label_classification", -1, r"class ids in 0\.\.2, or -100 .* got -1 in row 4"),
        ("regression", math.nan, r"finite numbers .* got nan in row 4"),
        ("regression", -math.inf, r"finite numbers .* got -inf in row 4"),
        ("multi_label_classification", [0.0, math.nan, 7.0], r"\[0, 1\].* nan in row 4, 7.0 in"),
        ("token_classification", [-100, 4, 0, 0, 0, 0], r"class ids in 0\.\.3.* got 4 in row 4"),
        ("masked_lm", [-100, 40, 0, 0, 0, 0], r"class ids in 0\.\.39.* got 40 in row 4"),
        ("seq2seq_lm", [-100, -2, 0, 0, 0, 0], r"class ids in 0\.\.39.* got -2 in row 4"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_label_without_an_output_is_named_before_it_trains(
    task, value, words, streamed, tmp_path
):
    rows = task_dataset(task, 12)
    labels = rows["labels"][:]
    labels[4] = value
    rows = with_column(rows, "labels", labels)
    train = rows.to_iterable_dataset() if streamed else rows
    teacher = task_model(task)
    stack = "encoder" if task == "seq2seq_lm" else None
    args = DistillationTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=4,
        per_device_train_batch_size=4, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    student = build_student(teacher, 2, stack=stack)
    trainer = kdnlp.DistillationTrainer(student, teacher, args, train_dataset=train)
    words = r"Optimizer step 2, .*rows 0 of it: expected labels" if streamed else words
    with pytest.raises(ValueError, match=words):
        trainer.train()


def test_a_label_that_is_missing_is_refused(tmp_path):
    rows = with_column(tiny_dataset(8), "labels", [0, 1, None, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"labels: expected class ids .* in row 2"):
        build("distillation", tmp_path, rows).train()


def test_labels_of_the_rows_to_evaluate_on_are_looked_at_before_training(tmp_path):
    test_split = with_column(tiny_dataset(8), "labels", [-1] * 8)
    overrides = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = build("distillation", tmp_path, tiny_dataset(), {"t": test_split}, **overrides)
    with pytest.raises(ValueError, match=r"eval_dataset 't', labels: .* -1 in row 0, -1 in row 1"):
        trainer.train()
    assert trainer.state.global_step == 0


@BOTH
def test_rows_of_one_class_train(name, tmp_path):
    trainer = build(name, tmp_path, with_column(tiny_dataset(8), "labels", [1] * 8))
    trainer.train()
    assert all(map(math.isfinite, history(trainer, "loss")))


@BOTH
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_without_any_label_has_no_loss_and_moves_nothing(name, accumulation, tmp_path):
    rows = with_column(tiny_dataset(8), "labels", [-100] * 8).to_iterable_dataset()
    trainer = build(
        name,
        tmp_path,
        rows,
        gradient_accumulation_steps=accumulation,
        loss_weights="task=1,logits=0",
    )
    before = {n: tensor.clone() for n, tensor in trainer.student.state_dict().items()}
    trainer.train()
    assert history(trainer, "loss") == [0.0] * 3
    assert history(trainer, "grad_norm") == [0.0] * 3
    assert all(torch.equal(t, before[n]) for n, t in trainer.student.state_dict().items())


@BOTH
def test_rows_whose_labels_all_count_for_nothing_are_refused(name, tmp_path):
    rows = with_column(tiny_dataset(8), "labels", [-100] * 8)
    with pytest.raises(ValueError, match=r"got -100 alone.*remove_columns"):
        build(name, tmp_path / "all", rows).train()
    some = with_column(tiny_dataset(8), "labels", [-100] * 7 + [1])
    build(name, tmp_path / "some", some).train()


def test_labels_that_no_weighted_loss_reads_may_all_be_missing(tmp_path):
    rows = with_column(tiny_dataset(8), "labels", [-100] * 8)
    weights = {"loss_weights": "loss=1"}  # of hidden states, at every token
    options = {"train_dataset": rows}
    row = TRAINER_ROWS["distillation-hidden"]
    trainer = build_trainer(row, tmp_path, trainer_options=options, **weights)
    trainer.train()
    assert all(norm > 0 for norm in history(trainer, "grad_norm"))


def test_a_label_without_an_output_is_not_advised_to_be_one_that_counts_nowhere(tmp_path):
    rows = with_column(tiny_dataset(8), "labels", [0, 1, -1, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"the teacher's too, and rows without"):
        build("distillation", tmp_path, rows).train()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_without_a_label_is_left_out_of_the_evaluation_loss(smoothing, tmp_path):
    labels = tiny_dataset(8, seed=1)["labels"][:]
    some = with_column(tiny_dataset(8, seed=1), "labels", [-100] * 4 + labels[4:])
    settings = {"per_device_eval_batch_size": 4, "label_smoothing_factor": smoothing}
    trainer = build("distillation", tmp_path, tiny_dataset(), some, **settings)
    expected = trainer.evaluate(some.select(range(4, 8)))["eval_loss"]
    assert trainer.evaluate(some)["eval_loss"] == pytest.approx(expected)
    assert not trainer.args.logging_nan_inf_filter


def test_a_nan_in_the_evaluation_loss_is_shown(tmp_path):
    trainer = build("distillation", tmp_path, tiny_dataset(), per_device_eval_batch_size=4)
    calls = []

    def spoil(module, given, outputs):
        calls.append(module)
        if len(calls) == 2:
            outputs.loss = outputs.loss * math.nan

    trainer.student.register_forward_hook(spoil)
    assert math.isnan(trainer.evaluate()["eval_loss"])


def test_arguments_of_theseus_show_a_nan_too(tmp_path):
    assert not TheseusTrainingArguments(output_dir=str(tmp_path)).logging_nan_inf_filter
