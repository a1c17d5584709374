"""A teacher that reads other columns than its student, through the trainer that teaches."""

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from scipy.special import softmax
from settings import (
    NO_DROPOUT,
    TASK_ROWS,
    TrainerRow,
    arguments,
    build_trainer,
    task_dataset,
    task_model,
    tiny_model,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from kdnlp.data.augmentation import augment_tokens
from kdnlp.data.collation import TeacherInputsCollator, add_teacher_inputs
from kdnlp.losses import HiddenLoss, LogitsLoss
from kdnlp.models.ensemble import TeacherEnsemble
from kdnlp.models.student import build_student
from kdnlp.trainers.distillation import DistillationTrainer

WORDS = ["red", "blue", "green", "warm", "cold"]
ONE_BATCH = {"max_steps": 1, "per_device_train_batch_size": 8}


def tokenizer_of(vocabulary):
    backend = Tokenizer(WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=32,
    )


OURS = tokenizer_of(["<pad>", "<unk>", *WORDS])
THEIRS = tokenizer_of(["<unk>", *reversed(WORDS), "<pad>"])
COLLATE = TeacherInputsCollator({"": OURS, "teacher_": THEIRS, "teacher_b_": THEIRS})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))


def raw():
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 6))) for _ in range(8)]
    notes = [" ".join(generator.choice(WORDS, 2)) for _ in range(8)]
    return Dataset.from_dict({"text": texts, "note": notes, "label": [0, 1] * 4})


def prepared():
    encoded = raw().map(lambda row: OURS(row["text"]), remove_columns=["text", "note"])
    return encoded.rename_column("label", "labels")


def model(name="bert", seed=0, vocab_size=7):
    """A tiny model whose answers differ from row to row."""
    tiny = tiny_model(name, 2, seed=seed, vocab_size=vocab_size, **NO_DROPOUT)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.mul_(2)
    return tiny


class RecordingLoss(LogitsLoss):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, student, teacher, batch):
        self.seen.append((teacher["logits"], dict(batch)))
        return super().forward(student, teacher, batch)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        return self.rows[place]


class OwnIterator(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = iter(list(rows))

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.rows)


KINDS = {
    "list": list,
    "torch": Rows,
    "stream": lambda rows: rows.to_iterable_dataset(),
    "mapped stream": lambda rows: rows.to_iterable_dataset().map(lambda row: row),
    "generator": lambda rows: IterableDataset.from_generator(lambda: iter(rows)),
}


def distil(teacher, data, folder, **overrides):
    """What the student's inputs and the teacher's answers were."""
    loss = RecordingLoss()
    row = TrainerRow("DistillationTrainer", losses=lambda: {"logits": loss})
    options = {"train_dataset": data, "eval_dataset": prepared(), "data_collator": COLLATE}
    student = model(seed=5)
    trainer = build_trainer(row, folder, teacher, student, options, **ONE_BATCH, **overrides)
    given = []
    student.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(set(kwargs)), with_kwargs=True
    )
    trainer.train()
    return trainer, loss.seen, given


@torch.no_grad()
def answers(teacher, tokenizer, texts):
    """What a teacher says of texts, row by row and without padding."""
    rows = [tokenizer(text, return_tensors="pt") for text in texts]
    return np.concatenate([teacher.eval()(**row)["logits"].numpy() for row in rows])


def texts_of(batch, column="text"):
    """The rows' texts in the order of the batch, which is shuffled."""
    rows = {row["text"]: row[column] for row in raw()}
    decoded = OURS.batch_decode(batch["input_ids"], skip_special_tokens=True)
    return [rows[text] for text in decoded]


def test_a_teacher_with_another_tokenizer_answers_the_texts_that_the_student_reads(tmp_path):
    teacher = model("distilbert", 1, vocab_size=len(THEIRS) + 1)
    data = add_teacher_inputs(prepared(), raw(), THEIRS, ["text"])
    trainer, seen, given = distil(teacher, data, tmp_path)
    ((logits, batch),) = seen
    expected = answers(teacher, THEIRS, texts_of(batch))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
    assert expected.std(0).min() > 0.05
    assert not [name for names in given for name in names if name.startswith("teacher_")]
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    assert np.isfinite(trainer.evaluate(data)["eval_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_reads_its_own_columns_of_rows_of_any_kind(kind, tmp_path):
    teacher = model("distilbert", 1, vocab_size=len(THEIRS) + 1)
    data = add_teacher_inputs(prepared(), raw(), THEIRS, ["text"])
    data = data.add_column("teacher_text", raw()["text"][:])
    _, ((logits, batch),), _ = distil(teacher, KINDS[kind](data), tmp_path)
    expected = answers(teacher, THEIRS, texts_of(batch))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)


def test_a_stream_that_is_its_own_iterator_loses_no_row_and_no_column_of_the_teacher(tmp_path):
    teacher = model(seed=1)
    data = add_teacher_inputs(prepared(), raw(), OURS, ["text", "note"])
    _, ((logits, _),), _ = distil(teacher, OwnIterator(data), tmp_path)
    both = [f"{row['text']} {row['note']}" for row in raw()]
    np.testing.assert_allclose(logits, answers(teacher, OURS, both), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["list", "torch", "mapped stream", "generator"])
def test_inputs_that_only_the_teacher_takes_are_refused_in_rows_of_any_kind(kind, tmp_path):
    data = prepared().map(lambda row: {"token_type_ids": [0] * len(row["input_ids"])})
    row, options = TrainerRow("DistillationTrainer"), {"train_dataset": KINDS[kind](data)}
    with pytest.raises(ValueError, match="The data has token_type_ids, which Bert"):
        build_trainer(row, tmp_path, model(), model("distilbert", 1), options)


def test_rows_set_after_an_evaluation_keep_the_teacher_s_columns(tmp_path):
    teacher, row = model(seed=1), TrainerRow("DistillationTrainer")
    options = {"train_dataset": prepared(), "eval_dataset": prepared(), "data_collator": COLLATE}
    trainer = build_trainer(row, tmp_path, teacher, model("distilbert", 5), options, **ONE_BATCH)
    trainer.evaluate()
    trainer.train_dataset = add_teacher_inputs(prepared(), raw(), OURS, ["note"])
    read = []
    hook = teacher.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    trainer.train()
    assert read == [2]
    hook.remove()
    trainer.train_dataset = prepared().add_column("token_type_ids", [[0]] * 8)
    with pytest.raises(ValueError, match="The data has token_type_ids"):
        trainer.train()


def test_a_privileged_text_reaches_the_student_through_the_teacher_alone(tmp_path):
    teacher = model(seed=1)
    data = add_teacher_inputs(prepared(), raw(), OURS, ["text", "note"])
    _, ((logits, batch),), given = distil(teacher, data, tmp_path)
    texts, notes = texts_of(batch), texts_of(batch, "note")
    both = [f"{text} {note}" for text, note in zip(texts, notes, strict=True)]
    expected = answers(teacher, OURS, both)
    # The padding token of the teacher's columns is the other tokenizer's, and attended to nowhere.
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(expected - answers(teacher, OURS, texts)).max() > 0.01
    assert not [name for names in given for name in names if name.startswith("teacher_")]


@pytest.mark.parametrize("prefixes", [["", "b_"], ["b_", ""]])
def test_members_of_an_ensemble_read_the_students_columns_and_their_own(prefixes, tmp_path):
    members = {"": (model(seed=1), OURS), "b_": (model("distilbert", 2, len(THEIRS) + 2), THEIRS)}
    ensemble = TeacherEnsemble([members[prefix][0] for prefix in prefixes], prefixes=prefixes)
    data = add_teacher_inputs(prepared(), raw(), THEIRS, ["text"], "teacher_b_")
    _, ((logits, batch),), _ = distil(ensemble, data, tmp_path)
    each = [answers(*member, texts_of(batch)) for member in members.values()]
    expected = np.log(softmax(each, axis=-1).mean(0))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)


def test_all_members_of_an_ensemble_may_read_columns_of_the_teachers(tmp_path):
    first, second = model(seed=1), model("distilbert", 2, len(THEIRS))
    ensemble = TeacherEnsemble([first, second], prefixes=["", "b_"])
    data = add_teacher_inputs(prepared(), raw(), OURS, ["text", "note"])
    data = add_teacher_inputs(data, raw(), THEIRS, ["note"], "teacher_b_")
    _, ((logits, batch),), _ = distil(ensemble, data, tmp_path)
    texts, notes = texts_of(batch), texts_of(batch, "note")
    both = [f"{text} {note}" for text, note in zip(texts, notes, strict=True)]
    each = [answers(first, OURS, both), answers(second, THEIRS, notes)]
    expected = np.log(softmax(each, axis=-1).mean(0))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-5)


def test_a_member_without_its_columns_is_told_before_it_answers_something_else(tmp_path):
    ensemble = TeacherEnsemble([model(), model(seed=1)], prefixes=["", "b_"])
    row, options = TrainerRow("DistillationTrainer"), {"train_dataset": prepared()}
    with pytest.raises(ValueError, match="The data lacks teacher_b_input_ids, which members"):
        build_trainer(row, tmp_path, ensemble, model(seed=5), options)
    with_others = add_teacher_inputs(prepared(), raw(), OURS, ["text"])
    with pytest.raises(ValueError, match="Add teacher_b_input_ids to the data"):
        distil(ensemble, with_others, tmp_path)


def test_a_loss_on_layers_is_refused_before_training(tmp_path):
    row = TrainerRow("DistillationTrainer", losses=lambda: {"hidden": HiddenLoss()})
    with pytest.raises(ValueError, match="TeacherEnsemble has no layers to read"):
        build_trainer(row, tmp_path, TeacherEnsemble([model()]), model(seed=5))


def test_positions_are_not_compared_where_the_teacher_reads_other_tokens(tmp_path):
    teacher = model("distilbert", 1, vocab_size=len(THEIRS) + 1)
    data = add_teacher_inputs(prepared(), raw(), THEIRS, ["text"])
    row = TrainerRow(
        "DistillationTrainer", losses=lambda: {"hidden": HiddenLoss(), "logits": LogitsLoss()}
    )
    with pytest.raises(ValueError, match=r"losses hidden read one value a position"):
        build_trainer(row, tmp_path, teacher, model(seed=5), {"train_dataset": data})


def test_rows_labelled_by_the_teacher_alone_train_without_labels(tmp_path):
    data = augment_tokens(prepared(), 1, OURS, 0.0, 0.3, labels="drop")
    with pytest.raises(ValueError, match="set loss_weights without task"):
        distil(model(seed=1), data, tmp_path / "equal shares")
    _, seen, _ = distil(model(seed=1), data, tmp_path / "own", loss_weights="logits=1")
    assert len(seen) == 1


@pytest.mark.parametrize("task", TASK_ROWS)
def test_two_teachers_who_agree_teach_what_one_of_them_does(task, tmp_path):
    histories = []
    for count in (1, 2):
        members = [task_model(task) for _ in range(count)]
        teacher = members[0] if count == 1 else TeacherEnsemble(members)
        student = build_student(members[0], 2, stack=TASK_ROWS[task].stack)
        args = arguments("DistillationTrainer", tmp_path / str(count), max_steps=2)
        trainer = DistillationTrainer(student, teacher, args, train_dataset=task_dataset(task))
        trainer.train()
        log = trainer.state.log_history
        histories.append([x["loss_logits"] for x in log if "loss_logits" in x])
    assert histories[1] == pytest.approx(histories[0], rel=1e-4, abs=1e-6)
    assert min(histories[0]) > 0
