import datetime
import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from kdnlp.data.preparation import check_dataset, prepare
from kdnlp.data.tables import infer_task, read_tables

ROWS = [
    {"text": "the cat sat", "label": "quiet"},
    {"text": "the dog, very loud", "label": "loud"},
    {"text": "NA", "label": "quiet"},
    {"text": "null", "label": "loud"},
]


def write(path, rows):
    """Write rows by hand, as a user's other program would."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        separator, quote = ("\t", "") if path.suffix == ".tsv" else (",", '"')
        lines = [rows[0].keys(), *([f"{quote}{v}{quote}" for v in row.values()] for row in rows)]
        path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    return path


def train_of(labels, label_type=None):
    features = Features({"text": Value("string"), "label": label_type}) if label_type else None
    columns = {"text": ["the cat"] * len(labels), "label": labels}
    return DatasetDict(train=Dataset.from_dict(columns, features=features))


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    train = write(tmp_path / f"train{ending}", ROWS)
    validation = write(tmp_path / f"dev{ending}", ROWS[:1])
    splits = read_tables(train, validation)
    # "NA" and "null" are words here; read as missing values they would be empty inputs.
    assert splits["train"].to_list() == ROWS
    assert splits["validation"].to_list() == ROWS[:1]


def test_a_lone_quote_in_a_tsv_swallows_no_rows(tmp_path):
    rows = [
        {"text": f"{quote}the cat {n}", "label": n % 2} for n, quote in enumerate(['"', "", '"'])
    ]
    splits = read_tables(write(tmp_path / "a.tsv", rows), write(tmp_path / "b.tsv", rows))
    assert splits["train"].to_list() == rows


def test_quoted_csv_fields_keep_commas_and_line_breaks(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"the cat,\nthe ""dog""",1\na bird,0\n')
    rows = read_tables(tmp_path / "a.csv", tmp_path / "a.csv")["train"]
    assert rows["text"][0] == 'the cat,\nthe "dog"'


def test_an_empty_cell_is_refused_and_no_empty_input(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nthe cat,1\n,0\n")
    splits = read_tables(tmp_path / "a.csv", tmp_path / "a.csv")
    with pytest.raises(ValueError, match="row 1: expected text, got None"):
        check_dataset(splits, infer_task(splits, ["text"]))


def test_the_held_out_rows_are_random_repeatable_and_not_trained_on(tmp_path):
    rows = [{"text": f"cat {n}", "label": n % 2} for n in range(200)]
    path = write(tmp_path / "all.jsonl", rows)

    def held_out(seed):
        splits = read_tables(path, validation_fraction=0.25, seed=seed)
        train, validation = set(splits["train"]["text"]), set(splits["validation"]["text"])
        assert (len(train), len(validation), len(train & validation)) == (150, 50, 0)
        return validation

    assert held_out(0) == held_out(0)
    assert held_out(0) != held_out(1)
    assert held_out(0) not in (
        {f"cat {n}" for n in range(50)},
        {f"cat {n}" for n in range(150, 200)},
    )


def test_a_rewritten_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    assert len(read_tables(path, path)["train"]) == 4
    write(path, ROWS[:3])
    assert len(read_tables(path, path)["train"]) == 3


@pytest.mark.parametrize("name", ["run[2]/a.csv", "a[1].csv", "a[!b].csv", "a*.csv", "a?.csv"])
def test_a_path_is_no_pattern_that_another_file_matches(name, tmp_path):
    path = tmp_path / name
    for other in ("run2/a.csv", "a1.csv", "ac.csv"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        write(tmp_path / other, ROWS[:1])
    path.parent.mkdir(exist_ok=True)
    assert read_tables(write(path, ROWS), path)["train"].to_list() == ROWS


@pytest.mark.filterwarnings("ignore")  # as a user's Python does
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\nParis, France,1\nRome, Italy,0\n"),
        ("a.csv", "text,label\nParis, France,1\nRome,0\n"),
        ("a.csv", "text,label\na, b, c,1\na, b, c,0\n"),
        ("a.csv", "text,label\n" + "a,1,\n" * 20_000 + "a, b,1\n"),  # not in the first chunk
        ("a.tsv", "text\tlabel\n1\tthe cat\t1\n2\tthe dog\t0\n"),
    ],
)
def test_no_field_is_lost_where_rows_have_more_than_the_header(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"fields in a row of .*a\..sv .* got more.*Quote a field"):
        read_tables(tmp_path / name)


def test_a_separator_at_the_end_of_each_row_moves_no_field_to_another_column(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nthe cat,1,\nthe dog,0,\n")
    rows = read_tables(tmp_path / "a.csv", tmp_path / "a.csv")["train"]
    assert rows.to_dict() == {"text": ["the cat", "the dog"], "label": [1, 0]}


def test_a_column_that_is_called_as_an_index_is_a_column(tmp_path):
    rows = [{"text": "the cat", "label": 1, "__index_level_0__": 7}]
    for path in (tmp_path / "a.csv", tmp_path / "a.parquet"):
        assert read_tables(write(path, rows), path)["train"].to_list() == rows


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.01])
def test_a_split_with_an_empty_side_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match=rf"got {fraction} of the 4 rows"):
        read_tables(write(tmp_path / "a.csv", ROWS), validation_fraction=fraction)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("a.csv", "text,label\n"), ("a.csv", "text,label\n\n"), ("a.csv", "")),
        *(("a.tsv", "text\tlabel\n"), ("a.json", "[]"), ("a.jsonl", ""), ("a.jsonl", "\n")),
    ],
)
def test_a_table_without_rows_is_named(name, text, tmp_path):
    train, empty = write(tmp_path / "train.csv", ROWS), tmp_path / name
    empty.write_text(text)
    for files in ([empty], [train, empty]):
        with pytest.raises(ValueError, match=rf"Expected rows in .*{name}, got none"):
            read_tables(*files)


def test_a_parquet_table_without_rows_is_named(tmp_path):
    Dataset.from_dict({"text": [], "label": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"Expected rows in .*a\.parquet, got none"):
        read_tables(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"text,label\nthe cat,1\nthe dog, loud,0\n", "saw 3"),
        ("a.csv", b"text,label\n\xff\xfe,1\n", "decode byte"),
        ("a.json", b'{"text": "the cat"', "JSON"),
        ("a.parquet", b"text,label\nthe cat,1\n", "[Pp]arquet"),
    ],
)
def test_a_table_that_is_not_what_its_ending_says_is_named_with_the_reason(
    name, content, why, tmp_path
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"Expected .*{name} to be what its ending says, .*{why}"):
        read_tables(tmp_path / name)


def test_a_missing_file_and_an_unknown_format_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        read_tables(tmp_path / "no.csv")
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.parquet, got 'a\.xlsx'"):
        read_tables(tmp_path / "a.xlsx")


@pytest.mark.parametrize(
    ("labels", "label_type", "names"),
    [
        (["spam", "ham", "spam"], None, ("ham", "spam")),
        ([2, 0, 1, 0], None, ("0", "1", "2")),
        ([True, False], None, ("false", "true")),
        (["3", "1", "2"], None, ("1", "2", "3")),
        ([0, 0], ClassLabel(names=["ham", "spam"]), ("ham", "spam")),
    ],
    ids=["names", "ids", "booleans", "digits-as-text", "class-labels"],
)
def test_a_classification_is_inferred_from_the_label_column(labels, label_type, names):
    task = infer_task(train_of(labels, label_type), ["text"])
    assert task.label_names == names
    assert task.metrics == (("accuracy", "f1") if len(names) == 2 else ("accuracy",))


def test_a_real_label_is_a_regression():
    task = infer_task(train_of([0.0, 1.0, 2.5]), ["text"], name="rating")
    assert (task.kind, task.num_labels, task.name) == ("regression", 1, "rating")
    assert task.metrics == ("pearson", "spearmanr")


def test_given_names_number_the_ids():
    task = infer_task(train_of([0, 2, 0]), ["text"], label_names=["low", "middle", "high"])
    assert task.label_names == ("low", "middle", "high")
    with pytest.raises(ValueError, match="got float"):
        infer_task(train_of([0.0, 1.0]), ["text"], label_names=["low", "high"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], r"0\.\.2 without gaps, got \[1, 2, 3\]"),
        ([0, 5], r"without gaps, got \[0, 5\]"),
        ([-1, 0, 1], r"without gaps"),
        (["0.5", "1.5", "nan"], "numbers stored as text, such as '0.5'"),
        (["spam", "spam"], r"two different classes, got \['spam'\]"),
        ([1.0, None, 0.0], "row 1: expected a label, got None"),
        ([[0.5], [1.0]], "got float"),
        ([["spam"], [None]], "row 1: expected class names or ids in each list, got None"),
        ([["spam"], None], "row 1: expected a label, got None"),
        ([[], []], r"two different classes, got \[\]"),
        ([[1], [1, 2]], r"0\.\.1 without gaps, got \[1, 2\]"),
        ([[[0]], [[1]]], "lists of classes, got List"),
        ([{"a": 1}, {"a": 2}], r"got \{"),
        ([datetime.date(2020, 1, 1)], "got date"),
    ],
)
def test_a_label_column_that_is_no_task_is_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        infer_task(train_of(labels), ["text"])


@pytest.mark.parametrize("columns", [[], ["text", "text", "text"]])
def test_three_texts_are_not_cut_to_two(columns):
    with pytest.raises(ValueError, match="one text column or two"):
        infer_task(train_of([0, 1]), columns)


def test_a_missing_column_or_train_split_is_named():
    with pytest.raises(ValueError, match=r"\['text', 'label'\]; \['review'\] missing"):
        infer_task(train_of([0, 1]), ["review"])
    with pytest.raises(ValueError, match=r"'train', got \['test'\]"):
        infer_task(DatasetDict(test=train_of([0, 1])["train"]), ["text"])


def test_a_misspelt_class_in_validation_is_no_class_of_its_own(tmp_path):
    train = write(tmp_path / "a.csv", ROWS)
    validation = write(tmp_path / "b.csv", [{"text": "the cat", "label": "quite"}])
    splits = read_tables(train, validation)
    with pytest.raises(ValueError, match=r"'validation', column 'label', row 0: .* got 'quite'"):
        check_dataset(splits, infer_task(splits, ["text"]))


def test_a_users_table_is_ready_to_train(tmp_path, tokenizer):
    splits = read_tables(write(tmp_path / "a.csv", ROWS * 5), validation_fraction=0.5)
    out = prepare(splits, infer_task(splits, ["text"]), tokenizer)
    by_text = {row["text"]: row["label"] for row in ROWS}
    for split in ("train", "validation"):
        expected = [("loud", "quiet").index(by_text[text]) for text in splits[split]["text"]]
        assert list(out[split]["labels"]) == expected
