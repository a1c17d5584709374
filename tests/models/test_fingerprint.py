"""Equal models and rows have equal hashes, wherever they come from; any other has another."""

import time

import datasets
import numpy as np
import pytest
import torch
from settings import tiny_dataset, tiny_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from kdnlp.models.cache.fingerprint import combine, fingerprint_model, fingerprint_rows
from kdnlp.models.ensemble import TeacherEnsemble


@pytest.mark.parametrize("name", ["bert", "gpt2", "deberta-v2", "llama"])
def test_a_model_that_was_saved_and_loaded_is_the_same(name, tmp_path):
    model = tiny_model(name, 2)
    before = fingerprint_model(model)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert fingerprint_model(loaded) == before
    assert fingerprint_model(tiny_model(name, 2)) == before


def test_using_a_model_does_not_change_it():
    model = tiny_model("bert", 2)
    before = fingerprint_model(model)
    ids = torch.tensor([[5, 6]])
    model.train()(input_ids=ids, labels=torch.tensor([1]))  # BERT notes the kind of problem
    assert model.config.problem_type == "single_label_classification"
    model.config.use_cache = False
    model.config.output_hidden_states = True
    model.requires_grad_(False)
    assert fingerprint_model(model) == before


def change_weight(model):
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6


CHANGES = {
    "one weight": change_weight,
    "the dtype": lambda model: model.to(torch.bfloat16),
    "a setting": lambda model: setattr(model.config, "layer_norm_eps", 1e-3),
    "a buffer": lambda model: model.register_buffer("scale", torch.ones(1)),
    "a buffer that is not saved": lambda model: model.bert.embeddings.position_ids.add_(1),
    "two swapped weights": lambda model: model.classifier.weight.data.copy_(
        model.classifier.weight.data.flip(0)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_model_is_another(change):
    model = tiny_model("bert", 2)
    before = fingerprint_model(model)
    change(model)
    assert fingerprint_model(model) != before


def test_another_class_with_the_same_state_is_another_model():
    first, second = nn.Sequential(nn.Linear(2, 2)), nn.ModuleList([nn.Linear(2, 2)])
    second.load_state_dict(first.state_dict())
    assert fingerprint_model(first) != fingerprint_model(second)


def two_members(**second):
    return [tiny_model("bert", 1), tiny_model("bert", 1, seed=1, **second)]


def swapped_labels():
    return {"id2label": {0: "yes", 1: "no"}, "label2id": {"yes": 0, "no": 1}}


MULTI = {"problem_type": "multi_label_classification"}
ENSEMBLES = {
    "equal weights": lambda: TeacherEnsemble(two_members()),
    "the first member alone": lambda: TeacherEnsemble(two_members(), [1, 0]),
    "the second member alone": lambda: TeacherEnsemble(two_members(), [0, 1]),
    "by a metric": lambda: TeacherEnsemble(two_members(), "by_metric", metrics=[0.9, 0.8]),
    "by entropy": lambda: TeacherEnsemble(two_members(), "entropy"),
    "logits": lambda: TeacherEnsemble(two_members(), average="logits"),
    "other columns": lambda: TeacherEnsemble(two_members(), prefixes=["", "b_"]),
    "their columns swapped": lambda: TeacherEnsemble(two_members(), prefixes=["b_", ""]),
    "another order of labels": lambda: TeacherEnsemble(two_members(**swapped_labels())),
    "a setting of the second": lambda: TeacherEnsemble(two_members(layer_norm_eps=1e-3)),
    "an activation of the second": lambda: TeacherEnsemble(two_members(hidden_act="relu")),
    "several labels an example": lambda: TeacherEnsemble(
        [tiny_model("bert", 1, **MULTI), tiny_model("bert", 1, seed=1, **MULTI)]
    ),
    "members in another order": lambda: TeacherEnsemble(two_members()[::-1]),
}


def test_ensembles_of_the_same_weights_and_other_settings_are_not_taken_for_each_other():
    first, second = ({n: fingerprint_model(e()) for n, e in ENSEMBLES.items()} for _ in range(2))
    assert first == second
    assert len(set(first.values())) == len(ENSEMBLES)


def test_an_ensemble_that_was_changed_after_it_was_built_is_another():
    changes = {
        "weights": lambda e: e.weights.copy_(torch.tensor([0.9, 0.1])),
        "average": lambda e: setattr(e, "average", "logits"),
        "by_entropy": lambda e: setattr(e, "by_entropy", True),
        "kind": lambda e: setattr(e, "kind", "regression"),
        "prefixes": lambda e: setattr(e, "prefixes", ["", "b_"]),
        "orders": lambda e: setattr(e, "orders", [None, [1, 0]]),
        "config": lambda e: setattr(e.members[1].config, "layer_norm_eps", 1e-3),
    }
    before = fingerprint_model(TeacherEnsemble(two_members()))
    after = {}
    for name, change in changes.items():
        ensemble = TeacherEnsemble(two_members())
        change(ensemble)
        after[name] = fingerprint_model(ensemble)
    assert before not in after.values()
    assert len(set(after.values())) == len(after)


def test_where_the_members_of_an_ensemble_came_from_does_not_count():
    ensemble = TeacherEnsemble(two_members())
    before = fingerprint_model(ensemble)
    ensemble.members[1].config._name_or_path = "elsewhere"
    ensemble.members[1].config.use_cache = False
    assert fingerprint_model(ensemble) == before


def test_a_model_without_a_state_is_refused():
    with pytest.raises(ValueError, match=r"weights in its state_dict, got ReLU with none"):
        fingerprint_model(nn.ReLU())


def test_a_model_of_22_million_weights_takes_well_under_a_second():
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = AutoModelForSequenceClassification.from_config(config)
    assert model.num_parameters() > 22e6
    times = []
    for _ in range(3):
        start = time.perf_counter()
        fingerprint_model(model)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def as_type(rows, kind):
    features = rows.features.copy()
    features["input_ids"] = datasets.Sequence(datasets.Value(kind))
    return rows.cast(features)


REBUILT = {
    "from two parts": lambda rows: datasets.concatenate_datasets(
        [rows.select(range(5)), rows.select(range(5, 32))]
    ),
    "through an index": lambda rows: rows.select(range(31, -1, -1)).select(range(31, -1, -1)),
    "from a list": lambda rows: datasets.Dataset.from_list(list(rows)),
    "with narrow integers": lambda rows: as_type(rows, "int16"),
    "in torch's format": lambda rows: rows.with_format("torch"),
    "with a column of text": lambda rows: rows.add_column("text", ["a"] * 32),
    "with its columns turned": lambda rows: rows.select_columns(rows.column_names[::-1]),
}


@pytest.mark.parametrize("rebuild", REBUILT.values(), ids=REBUILT)
def test_equal_rows_are_the_same_however_they_were_built(rebuild, tmp_path):
    rows = tiny_dataset()
    assert fingerprint_rows(rebuild(rows)) == fingerprint_rows(rows)
    rows.save_to_disk(tmp_path)
    assert fingerprint_rows(datasets.load_from_disk(tmp_path)) == fingerprint_rows(rows)


def replace_first(rows, column, value):
    return rows.map(lambda row, i: {column: value if i == 0 else row[column]}, with_indices=True)


OTHER = {
    "another order": lambda rows: rows.shuffle(seed=0),
    "a row less": lambda rows: rows.select(range(31)),
    "another id": lambda rows: replace_first(rows, "input_ids", [5, 6, 7, 8, 9, 10]),
    "another label": lambda rows: replace_first(rows, "labels", 7),
    "a shorter row": lambda rows: replace_first(rows, "input_ids", rows[0]["input_ids"][:5]),
    "another name": lambda rows: rows.rename_column("input_ids", "ids"),
    "another column": lambda rows: rows.add_column("token_type_ids", [[0] * 6] * 32),
    "floats": lambda rows: as_type(rows, "float32"),
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_changed_rows_are_others(change):
    rows = tiny_dataset()
    assert fingerprint_rows(change(rows)) != fingerprint_rows(rows)


def columns(**values):
    return datasets.Dataset.from_dict(values)


def test_where_one_list_ends_and_the_next_starts_counts():
    one, other = columns(a=[[1, 2], [3]]), columns(a=[[1], [2, 3]])
    assert fingerprint_rows(one) != fingerprint_rows(other)
    nested, turned = columns(a=[[[1], [2, 3]]]), columns(a=[[[1, 2], [3]]])
    assert fingerprint_rows(nested) != fingerprint_rows(turned)
    flat, missing = columns(a=[1, 2]), columns(a=[None, 2])
    assert fingerprint_rows(flat) != fingerprint_rows(missing)
    assert combine("a", "bc") != combine("ab", "c")


def test_columns_of_arrays_count_too():
    def images(value):
        features = datasets.Features({"a": datasets.Array2D((2, 2), "int64")})
        return datasets.Dataset.from_dict({"a": [np.full((2, 2), value)]}, features=features)

    assert fingerprint_rows(images(1)) != fingerprint_rows(images(2))


def test_only_named_columns_count_where_some_are_named():
    rows = tiny_dataset()
    names = ["attention_mask", "input_ids"]
    relabelled = replace_first(rows, "labels", 7)
    assert fingerprint_rows(rows, names) == fingerprint_rows(relabelled, names[::-1])
