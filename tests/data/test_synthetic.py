"""The embedded tasks: same seed same rows, labels confirmed by another reading, no leaks."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from kdnlp.data import event_grammar, sentiment_grammar
from kdnlp.data.synthetic import (
    DEMO_BUDGET,
    SYNTHETIC_TASKS,
    build_config,
    build_tokenizer,
    generate,
)

TASKS = sorted(SYNTHETIC_TASKS)
TEXT_TASKS = sorted(name for name in TASKS if "label" in SYNTHETIC_TASKS[name].label_columns)
GOOD = {"brilliant", "charming", "clever", "funny", "gripping", "lively", "moving", "superb"}
FLIPS = {"not", "never", "hardly", "far", "nobody", "denied"}


def read_sentiment(sentence: str) -> int:
    """Label a sentence by cutting and counting words; knows nothing of the grammar's code."""
    if sentence.startswith("although"):
        main = sentence.split(" , ")[1]
    elif " but " in sentence:
        main = sentence.split(" but ")[1]
    else:
        main = sentence.split(" although ")[0].split(" and ")[0]
    words = main.split()
    return int((words[-1] in GOOD) ^ (sum(word in FLIPS for word in words) % 2 == 1))


LITERAL_SENTENCES = [
    ("the plot was clever", 1),
    ("the plot is never really dull", 1),
    ("the plot was not far from dull", 0),
    ("nobody said that the cast was funny", 0),
    ("nobody denied that the cast was funny", 1),
    ("nobody denied that the critics said that the cast was not funny", 0),
    ("although the plot was not dull , the film was hardly moving", 0),
    ("the film was hardly moving but everyone denied that the plot was dull", 1),
    ("the music is far from weak although nobody thought that the ending was superb", 1),
    ("the music is weak and the cast is not lively", 0),
]


@pytest.mark.parametrize(("sentence", "label"), LITERAL_SENTENCES)
def test_the_reader_that_checks_the_labels_reads_as_a_person_does(
    sentence: str, label: int
) -> None:
    assert read_sentiment(sentence) == label


@pytest.mark.parametrize("seed", [0, 1])
def test_sentiment_labels_are_what_the_sentence_says(seed: int) -> None:
    rows = generate("synthetic_sentiment", 3000, 200, seed=seed)["train"]
    assert [read_sentiment(s) for s in rows["sentence"]] == list(rows["label"])
    features = rows.features["label"]
    assert features.names == ["negative", "positive"]


def test_a_clause_counts_every_flip_and_ignores_intensifiers() -> None:
    clause = sentiment_grammar.Clause(
        (("nobody", "denied"), ("everyone", "denied")),
        "plot",
        "was",
        "not far from",
        "very",
        "dull",
    )
    text = "nobody denied that everyone denied that the plot was not far from very dull"
    assert (clause.text, clause.polarity) == (text, 1)


def test_main_clauses_that_disagree_have_no_label() -> None:
    plain = sentiment_grammar.Clause((), "plot", "was", "", "", "dull")
    denied = sentiment_grammar.Clause((), "cast", "was", "not", "", "dull")
    join = next(j for j in sentiment_grammar.JOINS if j.template == "{} and {}")
    with pytest.raises(ValueError, match="agree"):
        sentiment_grammar.sentence_polarity(join, (plain, denied))


@pytest.mark.parametrize("task", TASKS)
def test_rows_do_not_depend_on_the_hash_seed_or_on_other_tasks(task: str) -> None:
    for other in TASKS:
        generate(other, 3, 3, seed=7)
    here = [list(split) for split in generate(task, 20, 20, seed=3).values()]
    code = (
        "from kdnlp.data.synthetic import generate\n"
        f"print([list(split) for split in generate({task!r}, 20, 20, seed=3).values()])"
    )
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONHASHSEED": "1234", "PYTHONPATH": root}
    there = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == repr(here)
    assert here != [list(split) for split in generate(task, 20, 20, seed=4).values()]


@pytest.mark.parametrize("task", TASKS)
def test_a_longer_train_split_leaves_validation_and_its_prefix_alone(task: str) -> None:
    short, long = generate(task, 50, 40), generate(task, 200, 40)
    assert list(short["validation"]) == list(long["validation"])
    assert list(short["train"]) == list(long["train"].select(range(50)))


@pytest.mark.parametrize("task", TASKS)
def test_no_text_leaks_from_train_to_validation(task: str) -> None:
    splits = generate(task, 3000, 1000)
    # A question may come up again, about another context.
    columns = [name for name in SYNTHETIC_TASKS[task].text_columns if name != "question"]
    texts = {
        name: {str(row[column]) for row in split for column in columns}
        for name, split in splits.items()
    }
    assert len(texts["train"]) == 3000 * len(columns)
    assert texts["train"].isdisjoint(texts["validation"])


@pytest.mark.parametrize("task", ["synthetic_sentiment", "synthetic_paraphrase"])
def test_a_constant_answer_scores_one_half(task: str) -> None:
    for split in generate(SYNTHETIC_TASKS[task], 400, 200).values():
        assert Counter(split["label"]) == {0: len(split) // 2, 1: len(split) // 2}


def test_counting_words_does_not_solve_sentiment() -> None:
    splits = generate("synthetic_sentiment", 6000, 1000)
    counts = CountVectorizer()
    model = LogisticRegression(max_iter=1000)
    model.fit(counts.fit_transform(splits["train"]["sentence"]), splits["train"]["label"])
    features = counts.transform(splits["validation"]["sentence"])
    assert 0.5 < model.score(features, splits["validation"]["label"]) < 0.75


SYNONYMS = {
    word: words[0]
    for words in (
        ("doctor", "physician"),
        ("lawyer", "attorney"),
        ("teacher", "instructor"),
        ("author", "writer"),
        ("manager", "boss"),
        ("child", "kid"),
        ("help", "helped", "assist", "assisted"),
        ("call", "called", "phone", "phoned"),
        ("praise", "praised", "commend", "commended"),
        ("blame", "blamed", "criticize", "criticized"),
        ("trust", "trusted", "believe", "believed"),
        ("answer", "answered"),
        ("follow", "followed"),
        ("invite", "invited"),
        ("dawn", "sunrise"),
        ("dusk", "sunset"),
        ("noon", "midday"),
        ("because", "since"),
        ("although", "though"),
    )
    for word in words
}
TIMES = {"dawn", "dusk", "noon", "monday", "friday"}
RELATIONS = {"because", "although"}


def read_event(sentence: str) -> tuple[object, ...]:
    """The eight facts of a sentence, read from its words; knows nothing of the grammar's code."""
    words = [SYNONYMS.get(word, word) for word in sentence.split()]
    time = next(word for word in words if word in TIMES)
    relation = next(word for word in words if word in RELATIONS)
    cut = words.index("," if "," in words else relation)
    main, other = words[:cut], words[cut + 1 :]
    if "," in words:
        main, other = other, main[1:]
    first, action, last = _content(main)
    other_agent, other_action, other_patient = _content(other)
    agent, patient = (last, first) if "was" in main else (first, last)
    assert other_patient == patient
    return (agent, action, patient, "not" in main, time, relation, other_agent, other_action)


def _content(clause: list[str]) -> list[str]:
    skipped = {"the", "was", "did", "not", "by", "at", "on", *TIMES}
    return [word for word in clause if word not in skipped]


def test_the_event_reader_reads_literal_sentences() -> None:
    active = "since the kid phoned the boss , at sunset the physician did not assist the manager"
    passive = "the boss was not helped by the doctor at dusk because the child called the manager"
    facts = ("doctor", "help", "manager", True, "dusk", "because", "child", "call")
    assert read_event(active) == read_event(passive) == facts


def test_paraphrases_mean_the_same_and_near_misses_do_not() -> None:
    rows = generate("synthetic_paraphrase", 2000, 10)["train"]
    same = [read_event(r["sentence1"]) == read_event(r["sentence2"]) for r in rows]
    assert [int(s) for s in same] == list(rows["label"])
    swapped = sum(read_event(r["sentence1"])[:3] == read_event(r["sentence2"])[2::-1] for r in rows)
    assert swapped > 100


def test_similarity_is_five_times_the_share_of_equal_facts() -> None:
    rows = generate("synthetic_similarity", 900, 10)["train"]
    for row in rows:
        first, second = read_event(row["sentence1"]), read_event(row["sentence2"])
        assert row["label"] == 5.0 * sum(a == b for a, b in zip(first, second, strict=True)) / 8
    assert set(Counter(rows["label"]).values()) == {100}
    assert (min(rows["label"]), max(rows["label"])) == (0.0, 5.0)
    assert rows.features["label"].dtype == "float32"


def test_a_changed_meaning_differs_in_the_asked_slots_only() -> None:
    before = event_grammar.Meaning(0, 0, 1, False, 0, 0, 2, 1)
    after = event_grammar.Meaning(0, 0, 1, True, 3, 0, 2, 1)
    assert event_grammar.shared_slots(before, after) == 6 / 8
    assert event_grammar.swap_roles(before).agent == 1


def reload_beside_a_model(folder: Path) -> PreTrainedTokenizerFast:
    """A model's folder is where AutoTokenizer would choose BERT's own tokenizer."""
    BertForSequenceClassification(build_config(num_layers=1)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_saved_tokenizer_knows_every_word_and_marks_the_pair(tmp_path: Path) -> None:
    built, loaded = build_tokenizer(), reload_beside_a_model(tmp_path)
    for task in map(SYNTHETIC_TASKS.get, TEXT_TASKS):
        rows = generate(task, 1500, 10)["train"]
        texts = [text for column in task.text_columns for text in rows[column]]
        ids = loaded(texts)["input_ids"]
        assert ids == built(texts)["input_ids"]
        assert all(loaded.unk_token_id not in row for row in ids)
        assert loaded.batch_decode(ids, skip_special_tokens=True) == texts
        pairs = [list(rows[column]) for column in task.text_columns]
        assert max(map(len, loaded(*pairs)["input_ids"])) <= task.max_length
    pair = loaded("The plot was dull", "the cast is weak")
    assert pair["token_type_ids"] == [0] * 6 + [1] * 5
    assert loaded.convert_ids_to_tokens(pair["input_ids"])[::5] == ["[CLS]", "[SEP]", "[SEP]"]
    assert loaded("quux")["input_ids"][1] == loaded.unk_token_id


@pytest.mark.parametrize(
    ("task", "counts", "match"),
    [("cola", (1, 1), "cola"), ("synthetic_sentiment", (0, 1), "num_train")],
)
def test_what_cannot_be_generated_is_refused(
    task: str, counts: tuple[int, int], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        generate(task, *counts)


def train_from_scratch(num_layers: int, folder: Path) -> float:
    """Validation accuracy after the exported budget."""
    tokenizer = build_tokenizer()
    splits = generate("synthetic_sentiment").map(
        lambda rows: tokenizer(rows["sentence"]), batched=True, remove_columns=["sentence", "idx"]
    )
    set_seed(0)
    trainer = Trainer(
        BertForSequenceClassification(build_config(num_layers)),
        TrainingArguments(
            str(folder),
            per_device_train_batch_size=DEMO_BUDGET.batch_size,
            per_device_eval_batch_size=100,
            learning_rate=DEMO_BUDGET.learning_rate,
            num_train_epochs=DEMO_BUDGET.num_epochs,
            warmup_steps=round(DEMO_BUDGET.warmup_ratio * DEMO_BUDGET.num_steps),
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )
    trainer.train()
    assert trainer.state.global_step == DEMO_BUDGET.num_steps
    return trainer.evaluate()["eval_accuracy"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_depth_is_needed_or_the_demo_measures_nothing(tmp_path: Path) -> None:
    """Four blocks solve sentiment with the exported budget, one block does not (seed 0)."""
    torch.use_deterministic_algorithms(True)
    try:
        deep, shallow = (train_from_scratch(n, tmp_path) for n in (4, 1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert deep >= 0.95
    assert shallow <= deep - 0.05
