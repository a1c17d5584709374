"""The embedded default: tasks in GLUE's and other layouts, their tokenizer and a small encoder.

All of it without a network. The texts come from `kdnlp.data.sentiment_grammar`, `event_grammar` and
`span_grammar`. They are meant for trying methods and settings out in minutes; they say nothing
about quality on real language.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import BertConfig, PreTrainedTokenizerFast

from kdnlp.data import event_grammar, sentiment_grammar, span_grammar
from kdnlp.data.task import Task

Row = dict[str, Any]


@dataclass(frozen=True)
class TrainingBudget:
    """What one training on `synthetic_sentiment` costs.

    Attributes:
        num_train: rows of the train split.
        num_validation: rows of the validation split.
        batch_size: rows per optimizer step.
        learning_rate: the peak, decayed linearly to 0.
        num_epochs: passes over the train split.
        warmup_ratio: the share of optimizer steps, in [0, 1], until the rate is at its peak.
    """

    num_train: int
    num_validation: int
    batch_size: int
    learning_rate: float
    num_epochs: float
    warmup_ratio: float

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run on one process."""
        return round(-(-self.num_train // self.batch_size) * self.num_epochs)


DEMO_BUDGET = TrainingBudget(
    num_train=24_000,
    num_validation=1_000,
    batch_size=32,
    learning_rate=1e-3,
    num_epochs=2.0,
    warmup_ratio=0.1,
)
"""With `build_config()`'s width it takes four blocks above 0.95 accuracy, one nowhere near.

The slow test of this file's name keeps that true.
"""

COMPRESSION_BUDGET = replace(DEMO_BUDGET, num_epochs=1.0)
"""For a smaller model that starts from the predecessor's blocks."""

SYNTHETIC_TASKS: dict[str, Task] = {
    "synthetic_sentiment": Task(
        name="synthetic_sentiment",
        text_columns=("sentence",),
        label_names=("negative", "positive"),
        metrics=("accuracy",),
        max_length=48,
    ),
    "synthetic_paraphrase": Task(
        name="synthetic_paraphrase",
        text_columns=("sentence1", "sentence2"),
        label_names=("not_equivalent", "equivalent"),
        metrics=("f1", "accuracy"),
        max_length=48,
    ),
    "synthetic_similarity": Task(
        name="synthetic_similarity",
        text_columns=("sentence1", "sentence2"),
        label_names=None,
        metrics=("pearson", "spearmanr"),
        max_length=48,
    ),
    "synthetic_entities": Task(
        name="synthetic_entities",
        text_columns=("tokens",),
        label_names=span_grammar.TAGS,
        metrics=("f1", "precision", "recall"),
        label_column="tags",
        max_length=48,
        kind="token_classification",
    ),
    "synthetic_answers": Task(
        name="synthetic_answers",
        text_columns=("question", "context"),
        label_names=None,
        metrics=("exact_match", "f1"),
        label_column="answers",
        max_length=48,
        kind="question_answering",
    ),
}


def generate(
    task: str | Task,
    num_train: int = DEMO_BUDGET.num_train,
    num_validation: int = DEMO_BUDGET.num_validation,
    seed: int = 0,
) -> DatasetDict:
    """Write a task's rows, in GLUE's layout: the text columns, `label` and `idx`.

    Entities have lists of words in `tokens` and of `ClassLabel`s in `tags` (CoNLL's layout), and
    answers `question`, `context` and `answers` (SQuAD's), where only contexts never occur twice.

    The rows are a function of the task, the seed and the two counts alone, and the validation split
    does not depend on `num_train`. No text occurs twice in a split, nor in both splits. Classes
    alternate, so that every prefix is balanced; shuffle before training.

    Args:
        task: a name in `SYNTHETIC_TASKS`, or the task itself.
        num_train: rows of `"train"`, at least 1.
        num_validation: rows of `"validation"`, at least 1.
        seed: any integer; another one gives other rows of the same kind.

    Returns:
        The splits `"train"` and `"validation"`. In GLUE's layout `label` is a `ClassLabel`, or a
        float from 0.0 (no meaning shared) to 5.0 (the same meaning) for the regression task.

    Raises:
        ValueError: if the task is not synthetic, or a count is below 1.
    """
    task = _resolve(task)
    for name, count in (("num_train", num_train), ("num_validation", num_validation)):
        if count < 1:
            raise ValueError(
                f"expected {name} >= 1, got {count}: an empty split would train nothing or measure "
                "nothing; ask for at least one row."
            )
    seen: set[str] = set()
    splits = {}
    # Validation comes first, so that it is the same whatever the size of the train split.
    for split, count in (("validation", num_validation), ("train", num_train)):
        rows = list(_unseen_rows(task, Random(f"{task.name}/{split}/{seed}"), count, seen))
        splits[split] = Dataset.from_list(rows, features=_features(task))
    return DatasetDict({"train": splits["train"], "validation": splits["validation"]})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of all synthetic tasks, from the grammars' closed vocabulary.

    Text is lower-cased and split at spaces and punctuation. A text becomes `[CLS] a [SEP]`, a pair
    `[CLS] a [SEP] b [SEP]` with token type 1 from `b` on. A word that no grammar holds is `[UNK]`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted(sentiment_grammar.words() | event_grammar.words() | span_grammar.words())
    vocabulary = {token: index for index, token in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def build_config(
    num_layers: int = 4,
    hidden_size: int = 96,
    num_heads: int = 4,
    intermediate_size: int = 192,
    dropout: float = 0.0,
) -> BertConfig:
    """A BERT small enough to train from scratch on a laptop's processor in about a minute.

    Dropout is off by default: every row is new and the labels hold no noise, so it would only slow
    the training down. The initial weights are wider than BERT's (0.05 against 0.02), which suits
    the small width.

    Args:
        num_layers: transformer blocks, at least 1.
        hidden_size: width, a multiple of `num_heads`.
        num_heads: attention heads per block.
        intermediate_size: width of the feed-forward part of a block.
        dropout: the probability for hidden states and attention weights, in [0, 1).
    """
    tokenizer = build_tokenizer()
    return BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=tokenizer.model_max_length,
        num_hidden_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_heads,
        intermediate_size=intermediate_size,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.05,
    )


def _resolve(task: str | Task) -> Task:
    name = task.name if isinstance(task, Task) else task
    if name not in SYNTHETIC_TASKS:
        raise ValueError(
            f"expected a synthetic task ({', '.join(SYNTHETIC_TASKS)}), got {name!r}: no grammar "
            "writes it; load real tasks from the Hub or a local folder instead."
        )
    return SYNTHETIC_TASKS[name]


def _features(task: Task) -> Features:
    label = ClassLabel(names=list(task.label_names)) if task.label_names else Value("float32")
    texts = {column: Value("string") for column in task.text_columns}
    if task.kind == "token_classification":
        texts, label = {"tokens": ListOf(Value("string"))}, ListOf(label)
    if task.kind == "question_answering":
        label = {"text": ListOf(Value("string")), "answer_start": ListOf(Value("int32"))}
    return Features({**texts, task.label_columns[0]: label, "idx": Value("int32")})


def _unseen_rows(task: Task, rng: Random, count: int, seen: set[str]) -> Iterator[Row]:
    """Yield rows whose texts are not in `seen`, and add them to it."""
    for index in range(count):
        row = _ROW_WRITERS[task.name](rng, index)
        # Drawn again until new: the grammars hold far more texts than any run asks for.
        while not seen.isdisjoint(_texts(task, row)):
            row = _ROW_WRITERS[task.name](rng, index)
        seen.update(_texts(task, row))
        yield {**row, "idx": index}


def _texts(task: Task, row: Row) -> list[str]:
    """The texts of a row that no other row may have."""
    if task.kind == "token_classification":
        return [" ".join(row["tokens"])]
    if task.kind == "question_answering":
        return [row["context"]]
    return [row[column] for column in task.text_columns]


def _sentiment_row(rng: Random, index: int) -> Row:
    label = index % 2
    return {"sentence": sentiment_grammar.draw_sentence(rng, 2 * label - 1), "label": label}


def _paraphrase_row(rng: Random, index: int) -> Row:
    first = second = event_grammar.draw_meaning(rng)
    label = index % 2
    if not label:
        second = _near_miss(rng, first)
    return {**_worded(rng, first, second), "label": label}


def _near_miss(rng: Random, meaning: event_grammar.Meaning) -> event_grammar.Meaning:
    """A meaning that shares nearly all words with the given one and says something else."""
    slot = rng.choice(("roles", "negated", rng.choice(event_grammar.SLOTS)))
    if slot == "roles":
        return event_grammar.swap_roles(meaning)
    return event_grammar.change(rng, meaning, (slot,))


def _similarity_row(rng: Random, index: int) -> Row:
    first = event_grammar.draw_meaning(rng)
    num_changed = index % (len(event_grammar.SLOTS) + 1)
    changed = rng.sample(event_grammar.SLOTS, num_changed)
    second = event_grammar.change(rng, first, tuple(changed))
    return {
        **_worded(rng, first, second),
        "label": 5.0 * event_grammar.shared_slots(first, second),
    }


def _worded(rng: Random, first: event_grammar.Meaning, second: event_grammar.Meaning) -> Row:
    """Both meanings in words; the same meaning is worded differently."""
    sentence1 = sentence2 = event_grammar.word(rng, first)
    while sentence2 == sentence1:
        sentence2 = event_grammar.word(rng, second)
    return {"sentence1": sentence1, "sentence2": sentence2}


def _entities_row(rng: Random, index: int) -> Row:
    tokens, tags = span_grammar.draw_tagged_sentence(rng)
    return {"tokens": tokens, "tags": tags}


def _answers_row(rng: Random, index: int) -> Row:
    return span_grammar.draw_question(rng)


_ROW_WRITERS: dict[str, Callable[[Random, int], Row]] = {
    "synthetic_sentiment": _sentiment_row,
    "synthetic_paraphrase": _paraphrase_row,
    "synthetic_similarity": _similarity_row,
    "synthetic_entities": _entities_row,
    "synthetic_answers": _answers_row,
}
