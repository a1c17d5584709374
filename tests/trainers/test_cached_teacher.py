"""Training on the teacher's cached outputs is training on the teacher."""

import pytest
import torch
from settings import (
    TASK_ROWS,
    TRAINER_ROWS,
    TrainerRow,
    build_cell,
    build_trainer,
    tiny_dataset,
    tiny_model,
)

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.losses import (
    DistillationLoss,
    HiddenLoss,
    LogitsCosineLoss,
    LogitsLoss,
    LogitsMSELoss,
    TeacherFreeLoss,
)
from kdnlp.models.cache import CachedCollator
from kdnlp.models.ensemble import TeacherEnsemble
from kdnlp.models.student import build_student
from kdnlp.trainers.cached import check_rows

CACHED = TRAINER_ROWS["distillation-cached"]
LAYERS = ("hidden", "attention", "attention_scores", "relation", "patient", "similarity")
CELLS = [("logits", task) for task in TASK_ROWS]
CELLS += [(loss, "single_label_classification") for loss in LAYERS]
CELLS += [
    ("hidden", "token_classification"),
    ("relation", "causal_lm"),
    ("hidden", "question_answering"),
]


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def calls(model):
    """A list that grows by one every time the model runs."""
    seen = []
    model.register_forward_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize(("loss", "task"), CELLS)
def test_cached_and_live_training_have_the_same_losses(loss, task, tmp_path):
    """Up to 1e-5, relative: a matrix product rounds otherwise for a batch of another size."""
    settings = {"per_device_train_batch_size": 5, "max_steps": 7}  # into the second epoch
    live = build_cell(loss, task, tmp_path / "live", **settings)
    live.train()
    cache = {"cache_teacher_outputs": True, "teacher_cache_dir": str(tmp_path / "teacher")}
    cached = build_cell(loss, task, tmp_path / "cached", **settings, **cache)
    cached.train()
    assert cached.partner is None
    for key in ("loss", "loss_loss", "loss_task", "grad_norm"):
        expected = history(live, key)
        assert len(expected) == 7
        assert history(cached, key) == pytest.approx(expected, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("row", ["distillation-cached", "theseus-cached"])
def test_the_teacher_runs_once_and_a_second_run_finds_what_it_said(row, tmp_path):
    folder = str(tmp_path / "teacher")
    counts = []
    for run in ("first", "second"):
        partner = tiny_model("bert", 4)
        seen = calls(partner)
        trainer = build_trainer(
            TRAINER_ROWS[row], tmp_path / run, partner, teacher_cache_dir=folder, num_train_epochs=3
        )
        trainer.train()
        counts.append(len(seen))
    batches = 32 / 8  # of the default evaluation batch size
    assert batches <= counts[0] <= batches + 2
    assert counts[1] <= 2  # what a cache of these outputs would look like


def test_another_teacher_is_another_cache(tmp_path):
    histories = []
    for seed in (0, 1):
        trainer = build_trainer(
            CACHED,
            tmp_path / str(seed),
            tiny_model("bert", 4, seed=seed),
            build_student(tiny_model("bert", 4), 2),
            teacher_cache_dir=str(tmp_path / "teacher"),
        )
        trainer.train()
        histories.append(history(trainer, "loss_logits"))
    assert len([path for path in (tmp_path / "teacher").iterdir() if path.is_dir()]) == 2
    assert histories[0] != histories[1]


@pytest.mark.parametrize("options", [{"average": "logits"}, {"weights": [0, 1]}], ids=str)
def test_ensembles_of_the_same_members_that_share_a_folder_get_their_own_answers(options, tmp_path):
    members = [tiny_model("bert", 1, seed=seed) for seed in (1, 2)]
    row = TrainerRow("DistillationTrainer", losses=lambda: {"logits": LogitsLoss()})
    runs = {}
    for name, chosen in {"plain": {"weights": [1, 0]}, "other": options}.items():
        for cached in (False, True):
            trainer = build_trainer(
                row,
                tmp_path / f"{name}-{cached}",
                TeacherEnsemble(members, **chosen),
                build_student(tiny_model("bert", 4), 2),
                cache_teacher_outputs=cached,
                teacher_cache_dir=str(tmp_path / "teacher") if cached else None,
            )
            trainer.train()
            runs[name, cached] = history(trainer, "loss_logits")
    for name in ("plain", "other"):
        assert runs[name, True] == pytest.approx(runs[name, False], rel=1e-5)
    assert runs["plain", False] != pytest.approx(runs["other", False], rel=1e-3)


def test_the_teacher_is_let_go_and_the_trainer_says_so(tmp_path):
    trainer = build_trainer(CACHED, tmp_path)
    assert trainer.teacher is trainer.partner
    trainer.train()
    with pytest.raises(ValueError, match=r"has let it go\. Keep a reference"):
        _ = trainer.teacher
    trainer.train()  # once more, on the same cache
    assert trainer.state.global_step == 6


def test_labels_are_cached_in_the_students_order(tmp_path):
    names = {0: "yes", 1: "no"}
    teacher = tiny_model("bert", 4, id2label=names, label2id={v: k for k, v in names.items()})
    student = build_student(tiny_model("bert", 4, seed=1), 2)
    runs = []
    for cached in (False, True):
        trainer = build_trainer(
            TrainerRow("DistillationTrainer", losses=lambda: {"logits": LogitsLoss()}),
            tmp_path / str(cached),
            teacher,
            build_student(student, 2),
            cache_teacher_outputs=cached,
            teacher_cache_dir=str(tmp_path / "teacher") if cached else None,
        )
        assert trainer.label_order == [1, 0]
        trainer.train()
        runs.append(history(trainer, "loss_logits"))
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)


def test_evaluation_in_mid_run_needs_no_row_numbers(tmp_path):
    trainer = build_trainer(CACHED, tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert len(history(trainer, "eval_loss")) == 3


def test_a_loss_that_counts_layers_from_the_top_finds_them_in_the_cache(tmp_path):
    runs = []
    for cached in (False, True):
        trainer = build_trainer(
            TRAINER_ROWS["distillation-parameters"],
            tmp_path / str(cached),
            cache_teacher_outputs=cached,
            teacher_cache_dir=str(tmp_path / "teacher") if cached else None,
        )
        trainer.train()
        runs.append(history(trainer, "loss_hidden"))
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)


def test_a_run_without_a_teacher_has_nothing_to_cache(tmp_path):
    row = TrainerRow("DistillationTrainer", losses=lambda: {"loss": TeacherFreeLoss()})
    settings = {"cache_teacher_outputs": True, "teacher_cache_dir": str(tmp_path / "teacher")}
    build_trainer(row, tmp_path / "run", **settings).train()
    assert not (tmp_path / "teacher").exists()


def test_more_than_the_limit_is_refused_before_a_step_is_taken(tmp_path):
    trainer = build_trainer(CACHED, tmp_path, teacher_cache_limit_gb=1e-6)
    before = {n: p.clone() for n, p in trainer.student.named_parameters()}
    with pytest.raises(ValueError, match=r"teacher_cache_limit_gb|limit_gb"):
        trainer.train()
    assert all(p.equal(before[n]) for n, p in trainer.student.named_parameters())
    assert trainer.state.global_step == 0


def test_rows_that_cannot_be_counted_are_refused(tmp_path):
    rows = tiny_dataset().to_iterable_dataset()
    trainer = build_trainer(CACHED, tmp_path, trainer_options={"train_dataset": rows})
    with pytest.raises(TypeError, match=r"Expected a tokenised datasets\.Dataset"):
        trainer.train()


def test_rows_that_are_numbered_already_keep_their_numbers(tmp_path):
    folder = str(tmp_path / "teacher")
    first = build_trainer(CACHED, tmp_path / "first", teacher_cache_dir=folder)
    first.train()
    options = {"train_dataset": first.train_dataset}
    again = build_trainer(
        CACHED, tmp_path / "again", trainer_options=options, teacher_cache_dir=folder
    )
    again.train()
    assert again.train_dataset is first.train_dataset
    assert again.cache.folder == first.cache.folder
    assert history(again, "loss_logits") == history(first, "loss_logits")


def test_numbers_of_another_order_are_refused(tmp_path):
    first = build_trainer(CACHED, tmp_path / "first")
    first.train()
    options = {"train_dataset": first.train_dataset.shuffle(seed=0)}
    trainer = build_trainer(CACHED, tmp_path / "second", trainer_options=options)
    with pytest.raises(ValueError, match=r"shuffled or filtered since.*remove_columns"):
        trainer.train()


def test_other_rows_than_those_that_were_cached_are_refused(tmp_path):
    trainer = build_trainer(CACHED, tmp_path / "run")
    check_rows(trainer)  # nothing is cached yet
    trainer.train()
    check_rows(trainer)
    other = build_trainer(
        CACHED,
        tmp_path / "other",
        trainer_options={"train_dataset": tiny_dataset(seed=5)},
    )
    other.train()
    cached = trainer.train_dataset
    for rows in (other.train_dataset, tiny_dataset(seed=5), None):
        trainer.train_dataset = rows
        with pytest.raises(ValueError, match=r"another one.*other rows' answers.*new trainer"):
            check_rows(trainer)
    trainer.train_dataset = cached
    check_rows(trainer)


class AnyLogits(DistillationLoss):
    """A loss that does not say what it reads of the logits."""


THREE_LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
TOP_K = {"cache_teacher_outputs": True, "teacher_cache_top_k": 1}


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ({"a": LogitsMSELoss}, r"a \(LogitsMSELoss\)\. Made-up"),
        ({"a": LogitsCosineLoss}, r"a \(LogitsCosineLoss\)\. Made-up"),
        ({"a": LogitsLoss, "b": AnyLogits}, r"got b \(AnyLogits\)\. Made-up"),
    ],
)
def test_top_k_is_refused_where_a_loss_reads_every_logit(losses, named, tmp_path):
    row = TrainerRow("DistillationTrainer", losses=lambda: {n: x() for n, x in losses.items()})
    partner = tiny_model("bert", 4, **THREE_LABELS)
    settings = {**TOP_K, "teacher_cache_dir": str(tmp_path / "teacher")}
    trainer = build_trainer(row, tmp_path / "run", partner, **settings)
    with pytest.raises(ValueError, match=rf"teacher_cache_top_k=1 .*{named}.*unset"):
        trainer.train()
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize("task", ["multi_label_classification", "regression"])
def test_top_k_is_refused_where_logits_are_no_distribution(task, tmp_path):
    settings = {**TOP_K, "teacher_cache_dir": str(tmp_path / "teacher")}
    trainer = build_cell("logits", task, tmp_path / "run", **settings)
    with pytest.raises(ValueError, match=rf"one class an item, got the task {task}\."):
        trainer.train()
    assert not (tmp_path / "teacher").exists()


def test_top_k_is_no_matter_to_losses_that_read_no_logits(tmp_path):
    losses = {"loss": LogitsLoss(), "hidden": HiddenLoss(), "free": TeacherFreeLoss()}
    row = TrainerRow("DistillationTrainer", losses=lambda: losses)
    partner = tiny_model("bert", 4, **THREE_LABELS)
    settings = {**TOP_K, "teacher_cache_dir": str(tmp_path / "teacher")}
    trainer = build_trainer(row, tmp_path / "run", partner, **settings)
    trainer.train()
    assert trainer.cache.layout.labels == 3


def test_the_teacher_sees_the_columns_of_training_and_text_does_not_stop_it(tmp_path):
    seen = set()

    def collator(features):
        seen.update(frozenset(feature) for feature in features)
        numbers = ("input_ids", "attention_mask", "labels")
        return {name: torch.tensor([f[name] for f in features]) for name in numbers}

    folder, text = tmp_path / "teacher", ["a"] * 32
    for name in ("teacher_name", "sentence"):
        rows = tiny_dataset().add_column(name, text)
        options = {"train_dataset": rows, "data_collator": collator, "eval_dataset": None}
        trainer = build_trainer(
            CACHED, tmp_path / name, trainer_options=options, teacher_cache_dir=str(folder)
        )
        seen.clear()
        trainer.train()
        assert len(seen) == 1, seen
        assert "sentence" not in next(iter(seen))
        assert isinstance(trainer.data_collator, CachedCollator)
        assert name in trainer.train_dataset.column_names
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


def test_text_beside_the_teachers_columns_passes_the_stock_collator(tmp_path):
    rows = tiny_dataset()
    runs = []
    for name, data in {"plain": rows, "text": rows.add_column("teacher_name", ["a"] * 32)}.items():
        options = {"train_dataset": data}
        trainer = build_trainer(CACHED, tmp_path / name, trainer_options=options)
        trainer.train()
        runs.append((history(trainer, "loss"), trainer.cache.folder.name))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_cache_dir": "x"}, "teacher_cache_dir needs cache_teacher_outputs=True"),
        ({"teacher_cache_top_k": 3}, "teacher_cache_top_k needs cache_teacher_outputs=True"),
        ({"teacher_cache_dtype": "int8"}, "must be one of float32, float16, bfloat16"),
        ({"teacher_cache_limit_gb": 0.0}, "teacher_cache_limit_gb must be above 0"),
        ({"cache_teacher_outputs": True, "teacher_cache_top_k": 0}, "top_k must be above 0"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments(str(tmp_path), use_cpu=True, **changes)


def test_rows_that_were_put_in_after_caching_are_refused(tmp_path):
    trainer = build_trainer(CACHED, tmp_path)
    trainer.train()
    trainer.train_dataset = tiny_dataset(seed=7)
    with pytest.raises(ValueError, match=r"Expected the train_dataset that the teacher's outputs"):
        trainer.train()


def test_another_depth_in_a_search_says_that_it_reads_other_layers(tmp_path):
    teacher, depths = tiny_model("bert", 4), iter([2, 2, 3])
    trainer = build_trainer(
        TrainerRow("DistillationTrainer", losses=lambda: {"hidden": HiddenLoss()}),
        tmp_path,
        teacher,
        trainer_options={"model_init": lambda: build_student(teacher, next(depths))},
        cache_teacher_outputs=True,
        teacher_cache_dir=str(tmp_path / "teacher"),
    )
    trainer.train()
    with pytest.raises(ValueError, match=r"were cached for an earlier one"):
        trainer.train()
