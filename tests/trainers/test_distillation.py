"""What only distillation does: the teacher's answers, their weight, and data without labels."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from settings import (
    NO_DROPOUT,
    TRAINER_ROWS,
    VOCAB_SIZE,
    ProjectedHidden,
    TrainerRow,
    build_trainer,
    pad_rows,
    task_model,
    tiny_dataset,
    tiny_model,
)
from tokenizers import Tokenizer
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.integrations import is_optuna_available

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.data.synthetic import build_tokenizer
from kdnlp.losses import DistillationLoss, HiddenLoss, LogitsLoss
from kdnlp.models.student import build_student
from kdnlp.trainers.distillation import DistillationTrainer

THREE = {0: "cat", 1: "cow", 2: "dog"}
ONE_BATCH = {"per_device_train_batch_size": 8, "max_steps": 1}


def distillation(folder, teacher=None, student=None, losses=None, options=None, **overrides):
    """A distillation trainer of four blocks and two, on the tiny data."""
    row = TrainerRow("DistillationTrainer", losses=losses)
    return build_trainer(row, folder, teacher, student, options, **overrides)


def labelled(labels, rows=8):
    """The tiny data with other labels."""
    return tiny_dataset(rows).remove_columns("labels").add_column("labels", labels)


def model_of(labels, problem_type=None, seed=0):
    names = dict(enumerate(labels))
    return tiny_model(
        "bert",
        4,
        seed=seed,
        id2label=names,
        label2id={name: i for i, name in names.items()},
        problem_type=problem_type,
        **NO_DROPOUT,
    )


def far_student(teacher):
    """A student of two blocks whose answers are far from the teacher's."""
    student = build_student(teacher, 2)
    with torch.no_grad():
        student.classifier.weight.mul_(-8)
        student.classifier.bias.add_(0.5)
    return student


def logits_of(model, data):
    batch = data.select_columns(["input_ids", "attention_mask"]).with_format("torch")[:]
    with torch.no_grad():
        return model.eval()(**batch).logits.double().numpy()


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


def cross_entropy(logits, labels):
    return -np.log(softmax(logits))[np.arange(len(labels)), labels].mean()


def soft_target_loss(student, teacher, temperature):
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


class RecordingLoss(LogitsLoss):
    """Keeps every batch that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, student, teacher, batch):
        assert student["logits"].requires_grad
        assert not teacher["logits"].requires_grad
        logits = [outputs["logits"].detach().clone() for outputs in (student, teacher)]
        self.seen.append((*logits, {name: tensor.clone() for name, tensor in batch.items()}))
        return super().forward(student, teacher, batch)


# The teacher.


def test_the_teacher_answers_without_dropout_and_the_same_in_every_step(tmp_path):
    teacher = tiny_model("bert", 4, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    loss = RecordingLoss()
    one_row = tiny_dataset(1).select([0] * 8)
    trainer = distillation(
        tmp_path,
        teacher.train(),
        losses=lambda: {"logits": loss},
        options={"train_dataset": one_row},
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.train()
    expected = logits_of(teacher, one_row)
    assert len(loss.seen) == 6
    for student, answers, _ in loss.seen:
        np.testing.assert_allclose(answers, expected[:4], rtol=1e-5)
        assert len(student.unique(dim=0)) > 1  # the student's own dropout is on
    assert all(p.grad is None for p in teacher.parameters())


def test_a_teacher_put_in_training_mode_after_construction_answers_without_dropout(tmp_path):
    teacher = tiny_model("bert", 4, hidden_dropout_prob=0.5)
    loss = RecordingLoss()
    data = tiny_dataset(8)
    trainer = distillation(
        tmp_path,
        teacher,
        losses=lambda: {"logits": loss},
        options={"train_dataset": data},
        **ONE_BATCH,
    )
    teacher.train()  # as training it with another Trainer leaves it
    trainer.train()
    _, answers, batch = loss.seen[0]
    with torch.no_grad():
        expected = teacher.eval()(batch["input_ids"], batch["attention_mask"]).logits
    torch.testing.assert_close(answers, expected)


def test_a_teacher_with_its_labels_in_another_order_teaches_the_same(tmp_path):
    teacher = model_of(THREE.values(), seed=4)
    # A cycle, which undone the wrong way round is another order.
    cycled = model_of(["dog", "cat", "cow"], seed=4)
    order = [2, 0, 1]
    with torch.no_grad():
        cycled.classifier.weight.copy_(teacher.classifier.weight[order])
        cycled.classifier.bias.copy_(teacher.classifier.bias[order])
    histories = []
    for name, partner in (("same", teacher), ("cycled", cycled)):
        trainer = distillation(
            tmp_path / name,
            partner,
            far_student(teacher),
            options={"train_dataset": labelled(list(range(3)) * 2, 6)},
        )
        assert (trainer.label_order is None) == (name == "same")
        trainer.train()
        histories.append([history(trainer, key) for key in ("loss", "loss_logits", "grad_norm")])
    np.testing.assert_allclose(histories[0], histories[1], rtol=1e-5, atol=1e-7)


# The loss of a step, by hand.


@pytest.mark.parametrize("declared", [True, False])
def test_several_labels_an_item_are_sigmoids_in_both_losses(declared, tmp_path):
    teacher = model_of(THREE.values(), "multi_label_classification" if declared else None)
    student = far_student(teacher)
    labels = np.random.default_rng(0).integers(0, 2, (8, 3)).astype(float)
    data = labelled(labels.tolist())
    ours, theirs = logits_of(student, data), logits_of(teacher, data)
    trainer = distillation(
        tmp_path,
        teacher,
        student.train(),
        options={"train_dataset": data},
        temperature=3.0,
        loss_weights="task=0.25,logits=0.75",
        **ONE_BATCH,
    )
    trainer.train()
    task = -(labels * np.log(sigmoid(ours)) + (1 - labels) * np.log(sigmoid(-ours))).mean()
    p, q = sigmoid(theirs / 3), sigmoid(ours / 3)
    soft = 9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert history(trainer, "loss_task") == pytest.approx([task], rel=1e-5)
    assert history(trainer, "loss_logits") == pytest.approx([soft], rel=1e-4)
    assert history(trainer, "loss") == pytest.approx([0.25 * task + 0.75 * soft], rel=1e-4)


@pytest.mark.parametrize("declared", [True, False])
def test_a_score_is_squared_error_in_both_losses_and_has_no_temperature(declared, tmp_path):
    teacher = model_of(["similarity"], "regression" if declared else None)
    student = far_student(teacher)
    labels = np.random.default_rng(0).uniform(0, 5, 8)
    data = labelled(labels.tolist())
    ours, theirs = logits_of(student, data)[:, 0], logits_of(teacher, data)[:, 0]
    trainer = distillation(
        tmp_path,
        teacher,
        student.train(),
        options={"train_dataset": data},
        temperature=3.0,
        **ONE_BATCH,
    )
    trainer.train()
    task, soft = ((ours - labels) ** 2).mean(), ((ours - theirs) ** 2).mean()
    assert history(trainer, "loss_task") == pytest.approx([task], rel=1e-5)
    assert history(trainer, "loss_logits") == pytest.approx([soft], rel=1e-4)
    assert history(trainer, "loss") == pytest.approx([(task + soft) / 2], rel=1e-4)


def test_temperature_and_weights_follow_their_schedules_in_the_loss_of_every_step(tmp_path):
    loss, teacher = RecordingLoss(), tiny_model("bert", 4, **NO_DROPOUT)
    trainer = distillation(
        tmp_path,
        teacher,
        far_student(teacher),
        losses=lambda: {"logits": loss},
        max_steps=4,
        temperature=5.0,
        final_temperature=1.0,
        loss_weights={"task": 0.2, "logits": 0.8},
        final_loss_weights={"task": 1.0},
        loss_weights_schedule="step",
    )
    trainer.train()
    expected = []
    for step, (student, teacher, batch) in enumerate(loss.seen):
        temperature = 5.0 - step  # linear over four steps
        task_weight = 0.2 + 0.8 * step / 4  # four stairs over four steps
        ours, theirs = student.double().numpy(), teacher.double().numpy()
        task = cross_entropy(ours, batch["labels"].numpy())
        soft = soft_target_loss(ours, theirs, temperature)
        assert soft > 0.01
        expected.append(task_weight * task + (0.8 - 0.8 * step / 4) * soft)
    assert history(trainer, "loss") == pytest.approx(expected, rel=1e-4)


def test_label_smoothing_smooths_the_labels_and_not_the_teacher(tmp_path):
    losses, teacher = {}, tiny_model("bert", 4, **NO_DROPOUT)
    for smoothing in (0.0, 0.2):
        loss = RecordingLoss()
        trainer = distillation(
            tmp_path / str(smoothing),
            teacher,
            far_student(teacher),
            losses=lambda loss=loss: {"logits": loss},
            label_smoothing_factor=smoothing,
            max_steps=1,
        )
        trainer.train()
        ours, theirs, labels = (
            tensor.double().numpy() for tensor in (*loss.seen[0][:2], loss.seen[0][2]["labels"])
        )
        uniform = -np.log(softmax(ours)).mean()
        task = (1 - smoothing) * cross_entropy(ours, labels.astype(int)) + smoothing * uniform
        soft = soft_target_loss(ours, theirs, trainer.args.temperature)
        losses[smoothing] = history(trainer, "loss_task")[0]
        assert losses[smoothing] == pytest.approx(task, rel=1e-5)
        assert history(trainer, "loss_logits") == pytest.approx([soft], rel=1e-4)
        assert history(trainer, "loss") == pytest.approx([(task + soft) / 2], rel=1e-4)
    assert losses[0.0] != pytest.approx(losses[0.2], rel=1e-3)


@pytest.mark.parametrize("task", ["regression", "question_answering"])
def test_labels_that_are_no_classes_are_not_smoothed(task, tmp_path):
    args = DistillationTrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)
    with pytest.raises(ValueError, match=f"label_smoothing_factor must be 0 for {task}, got 0.1"):
        DistillationTrainer(task_model(task, 2), task_model(task), args)


def test_a_saved_tokenizer_cuts_nothing_by_itself(tmp_path):
    tokenizer = build_tokenizer()
    whole = len(tokenizer("a b c d e f").input_ids)
    trainer = distillation(tmp_path, options={"processing_class": tokenizer})
    tokenizer("a b c d e f", truncation=True, max_length=4, padding="max_length")
    trainer.save_model()
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(saved.encode("a b c d e f").ids) == whole > 4


# Data without labels.


def test_without_a_weight_for_the_task_the_data_needs_no_labels(tmp_path):
    trainer = distillation(
        tmp_path,
        options={"train_dataset": tiny_dataset().remove_columns("labels")},
        loss_weights="logits=1",
    )
    before = {n: p.detach().clone() for n, p in trainer.student.named_parameters()}
    trainer.train()
    assert not history(trainer, "loss_task")
    assert history(trainer, "loss") == pytest.approx(history(trainer, "loss_logits"), rel=1e-5)
    assert any(not torch.equal(before[n], p) for n, p in trainer.student.named_parameters())


def test_labels_beside_a_task_weight_of_0_change_nothing(tmp_path):
    runs = []
    for name in ("with", "without"):
        data = tiny_dataset() if name == "with" else tiny_dataset().remove_columns("labels")
        trainer = distillation(
            tmp_path / name, options={"train_dataset": data}, loss_weights="logits=1"
        )
        trainer.train()
        runs.append([history(trainer, key) for key in ("loss", "grad_norm")])
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)


def test_a_task_loss_without_labels_is_refused_with_both_ways_out(tmp_path):
    data = tiny_dataset().remove_columns("labels")
    trainer = distillation(tmp_path, options={"train_dataset": data})
    with pytest.raises(ValueError, match="Give the data labels, or set loss_weights without task"):
        trainer.train()


def test_prediction_on_unlabelled_data_is_the_students_alone(tmp_path):
    trainer = distillation(tmp_path)
    trainer.train()
    data = tiny_dataset(10, seed=2)
    labelled_prediction = trainer.predict(data)
    prediction = trainer.predict(data.remove_columns("labels"))
    assert prediction.label_ids is None
    assert "test_loss" not in prediction.metrics
    assert "test_loss" in labelled_prediction.metrics
    expected = logits_of(trainer.student, data)
    np.testing.assert_allclose(prediction.predictions, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(prediction.predictions, labelled_prediction.predictions)


# What the models are asked for.


class SeesWhatIsKept(DistillationLoss):
    needs = frozenset({"hidden_states", "values", "attentions"})

    def __init__(self):
        super().__init__()
        self.seen = []

    def layers(self):
        return {"hidden_states": ([0, 2], [1, 4]), "values": ([1], [3])}

    def forward(self, student, teacher, batch):
        self.seen.append(
            [{f: sorted(x[f]) for f in sorted(self.needs)} for x in (student, teacher)]
        )
        return (student["values"][1] - teacher["values"][3]).square().mean()


def test_only_the_layers_that_a_loss_reads_are_kept(tmp_path):
    loss = SeesWhatIsKept()
    trainer = distillation(tmp_path, losses=lambda: {"loss": loss}, max_steps=2)
    asked = []
    for model in (trainer.student, trainer.teacher):
        model.register_forward_pre_hook(
            lambda model, _, kwargs: asked.append({k for k in kwargs if k.startswith("output_")}),
            with_kwargs=True,
        )
    own = [trainer.student.config._attn_implementation, trainer.teacher.config._attn_implementation]
    trainer.train()
    ours = {"attentions": [1, 2], "hidden_states": [0, 2], "values": [1]}
    theirs = {"attentions": [1, 2, 3, 4], "hidden_states": [1, 4], "values": [3]}
    assert loss.seen == [[ours, theirs]] * 2
    assert asked
    assert not any(asked)
    after = [trainer.student, trainer.teacher]
    assert [model.config._attn_implementation for model in after] == own
    hooks = [m for model in after for m in model.base_model.modules() if m._forward_hooks]
    assert not hooks


# What the Trainer's own machinery does with it.


@pytest.mark.parametrize("name", ["distillation", "distillation-parameters"])
def test_early_stopping_ends_the_run_and_the_best_checkpoint_comes_back(name, tmp_path):
    scores = iter([0.2, 0.6, 0.5, 0.4, 0.3, 0.2])
    trainer = build_trainer(
        TRAINER_ROWS[name],
        tmp_path,
        trainer_options={
            "callbacks": [EarlyStoppingCallback(2)],
            "compute_metrics": lambda _: {"score": next(scores)},
        },
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.state.best_global_step == 2
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    last = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    held = trainer.student.state_dict()
    assert all(torch.equal(held[key], best[key]) for key in held)
    assert any(not torch.equal(held[key], last[key]) for key in held)
    for loss_name, loss in trainer.losses.items():
        for key, tensor in loss.state_dict().items():
            assert torch.equal(tensor, best[f"distillation_losses.{loss_name}.{key}"])


@pytest.mark.parametrize("name", ["distillation", "distillation-parameters", "theseus-logits"])
def test_every_trial_starts_from_the_same_model_and_the_same_losses(name, tmp_path):
    partner = tiny_model("bert", 4, **NO_DROPOUT)
    trainer = build_trainer(
        TRAINER_ROWS[name],
        tmp_path,
        partner,
        trainer_options={"model_init": lambda trial: build_student(partner, 2)},
    )
    histories, students = [], []
    for _ in range(2):
        trainer.train(trial=None)
        histories.append([history(trainer, key) for key in ("loss", "grad_norm")])
        students.append(trainer.student)
    assert histories[0] == histories[1]
    assert students[0] is not students[1]


class BuiltFromTheModels(ProjectedHidden):
    """A loss that takes its widths from the two models."""

    def __init__(self):
        DistillationLoss.__init__(self)

    def prepare(self, student, teacher, task):
        self.projection = torch.nn.Linear(student.hidden_size, teacher.hidden_size)


@pytest.mark.parametrize("with_model_init", [False, True])
def test_a_loss_may_take_its_widths_from_the_models(with_model_init, tmp_path):
    teacher = tiny_model("bert", 4, **NO_DROPOUT)
    options = {"model_init": lambda: build_student(teacher, 2)} if with_model_init else {}
    trainer = distillation(
        tmp_path, teacher, losses=lambda: {"hidden": BuiltFromTheModels()}, options=options
    )
    trainer.train()
    assert len(history(trainer, "loss_hidden")) == 6


@pytest.mark.skipif(not is_optuna_available(), reason="optuna, the search's backend, is missing")
def test_a_hyperparameter_search_tries_the_values_that_it_draws(tmp_path):
    teacher = tiny_model("bert", 4, **NO_DROPOUT)
    trainer = distillation(
        tmp_path,
        teacher,
        options={"model_init": lambda trial: build_student(teacher, 2)},
        loss_weights="logits=1",
        max_steps=2,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"temperature": trial.suggest_float("temperature", 1.0, 4.0)},
        backend="optuna",
        n_trials=2,
    )
    assert 1.0 <= best.hyperparameters["temperature"] <= 4.0


def test_a_teacher_of_another_family_teaches_through_the_students_inputs(tmp_path):
    teacher = tiny_model("roberta", 3)
    trainer = distillation(tmp_path, teacher, tiny_model("distilbert", 2))
    trainer.train()
    assert type(trainer.student).__name__ == "DistilBertForSequenceClassification"
    assert trainer.student.config.vocab_size == VOCAB_SIZE
    assert len(history(trainer, "loss_logits")) == 6


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
def test_evaluation_before_training_runs_in_the_precision_of_plain_finetuning(precision, tmp_path):
    teacher = tiny_model("bert", 4, **NO_DROPOUT)
    distilled = distillation(tmp_path / "a", teacher, **precision).evaluate()["eval_loss"]
    row = TRAINER_ROWS["finetuning"]
    plain = build_trainer(row, tmp_path / "b", teacher, **precision).evaluate()["eval_loss"]
    assert distilled == plain


def test_evaluation_before_in_and_after_training_runs_in_one_precision(tmp_path):
    trainer = distillation(
        tmp_path, bf16=True, learning_rate=0.0, eval_strategy="steps", eval_steps=6
    )
    losses = [trainer.evaluate()["eval_loss"]]
    trainer.train()
    losses.append(trainer.evaluate()["eval_loss"])
    losses.append(history(trainer, "eval_loss")[0])
    assert len(set(losses)) == 1


def test_a_second_run_of_one_trainer_trains_in_the_precision_of_the_first(tmp_path):
    trainer = distillation(tmp_path, bf16=True, max_steps=1)
    seen = []
    trainer.student.classifier.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    trainer.train()
    trainer.train()
    assert seen == [torch.bfloat16] * 2


def test_rows_are_evaluated_in_order_when_training_groups_them_by_length(tmp_path):
    seen = []

    def metrics(prediction):
        seen.append(prediction.label_ids.tolist())
        return {}

    ragged = tiny_dataset(12).map(
        lambda row, i: {
            "input_ids": row["input_ids"][: 2 + i % 5],
            "attention_mask": row["attention_mask"][: 2 + i % 5],
            "labels": i % 2,
        },
        with_indices=True,
    )
    options = {"eval_dataset": ragged, "compute_metrics": metrics, "data_collator": pad_rows}
    trainer = distillation(tmp_path, options=options, train_sampling_strategy="group_by_length")
    trainer.evaluate()
    assert seen == [ragged["labels"][:]]


def test_what_a_loss_learns_is_in_an_optimizer_of_the_callers_own(tmp_path):
    loss, student = HiddenLoss(projection=True), tiny_model("bert", 2, seed=3)
    options = {"optimizers": (torch.optim.AdamW(student.parameters(), 0.01), None)}
    trainer = distillation(
        tmp_path, student=student, losses=lambda: {"hidden": loss}, options=options
    )
    before = [p.clone() for p in loss.parameters()]
    trainer.train()
    trainer.train()  # they are there already
    assert len(trainer.optimizer.param_groups) == 2
    assert not any(map(torch.equal, before, loss.parameters()))


def test_a_schedule_made_for_an_optimizer_without_a_loss_s_parameters_is_refused(tmp_path):
    student = tiny_model("bert", 2, seed=3)
    optimizer = torch.optim.AdamW(student.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    options = {"optimizers": (optimizer, schedule)}
    trainer = distillation(
        tmp_path, None, student, lambda: {"hidden": HiddenLoss(projection=True)}, options
    )
    with pytest.raises(ValueError, match="Pass the optimizer alone"):
        trainer.train()


def test_a_run_that_is_gone_on_with_in_its_trainer_has_its_optimizer_s_groups(tmp_path):
    row, saved = TRAINER_ROWS["distillation-uncertainty"], {"save_strategy": "steps"}
    trainer = build_trainer(row, tmp_path, max_steps=2, save_steps=2, **saved)
    trainer.train()
    trainer.args.max_steps = 3
    trainer.train(resume_from_checkpoint="last")
    assert trainer.state.global_step == 3
    assert all(group["params"] for group in trainer.optimizer.param_groups)


def test_a_search_over_depths_starts_every_projection_as_the_first_model_did(tmp_path):
    teacher, depths = tiny_model("bert", 4, **NO_DROPOUT), iter([2, 2, 3])
    loss, starts = HiddenLoss(projection=True), []
    trainer = distillation(
        tmp_path,
        teacher,
        losses=lambda: {"hidden": loss},
        options={"model_init": lambda: build_student(teacher, next(depths))},
        max_steps=1,
    )

    class Noted(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            starts.append({n: p.weight.detach().clone() for n, p in loss.projections.items()})

    trainer.add_callback(Noted)
    trainer.train()
    trainer.train()
    assert [sorted(start) for start in starts] == [["0", "1", "2"], ["0", "1", "2", "3"]]
    assert all(w.equal(torch.eye(16)) for start in starts for w in start.values())


@pytest.mark.parametrize("trainer", ["DistillationTrainer", "TheseusTrainer"])
def test_floating_point_operations_are_estimated_as_by_the_stock_trainer(trainer, tmp_path):
    ours = build_trainer(TrainerRow(trainer), tmp_path)
    ours.train()
    stock = Trainer.floating_point_ops(ours, {"input_ids": torch.ones(4, 6)})
    assert ours.state.total_flos == 6 * stock
