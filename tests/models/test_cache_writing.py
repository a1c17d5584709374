"""What is written of a teacher's outputs, under which name, and what is refused before."""

import math
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cache_cases import (
    LONGEST,
    PaddingCollator,
    Teacher,
    contents,
    flattened,
    ragged_dataset,
    token_sums,
    write_cache,
)

from kdnlp.models.cache.rows import with_row_numbers
from kdnlp.models.cache.store import TeacherCache


def test_numbers_are_where_the_format_says_they_are(tmp_path):
    dataset = ragged_dataset()
    folder = write_cache(token_sums, tmp_path, dataset).folder
    lengths = np.load(folder / "lengths.attention_mask.npy")
    hidden = np.load(folder / "hidden_states.1.npy", mmap_mode="r")
    assert lengths.tolist() == [len(ids) for ids in dataset["input_ids"]]
    expected = np.concatenate(dataset["input_ids"])[:, None] * np.array([1.0, 2.0, -1.0])
    assert np.array_equal(hidden, expected)
    logits = [[sum(ids), len(ids)] for ids in dataset["input_ids"]]
    assert np.array_equal(np.load(folder / "logits.npy", mmap_mode="r"), logits)


def test_the_size_is_known_before_and_holds_no_padding(tmp_path):
    cache = write_cache(Teacher(), tmp_path)
    lengths = np.array([len(ids) for ids in ragged_dataset()["input_ids"]])
    widths = 16 + 16 + 6 + 4 + 16  # two hidden layers, queries, keys, values
    numbers = 30 * 2 + lengths.sum() * widths + (lengths**2).sum() * 2 * 3 + 30  # heads, layers
    assert cache.nbytes == 4 * numbers
    files = [np.load(path, mmap_mode="r") for path in cache.folder.glob("*.npy")]
    assert sum(array.nbytes for array in files) == cache.nbytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_as_torch_does_and_takes_half_the_space(dtype, tmp_path):
    whole, half = (write_cache(Teacher(), tmp_path, dtype=d) for d in (None, dtype))
    batch = PaddingCollator()(list(ragged_dataset()))
    expected = {}
    for name, layer, tensor in flattened(whole.read(range(30), batch)):
        expected[name, layer] = tensor.to(getattr(torch, dtype)).float()
    for name, layer, tensor in flattened(half.read(range(30), batch)):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name, layer])
    lengths = 4 * 30
    assert half.nbytes - lengths == (whole.nbytes - lengths) / 2


def test_a_number_beyond_float16_is_refused_and_not_stored_as_infinite(tmp_path):
    def predict(batch):
        return {"logits": token_sums(batch)["logits"] * 1e4}

    with pytest.raises(ValueError, match=r"beyond float16.*bfloat16"):
        write_cache(predict, tmp_path, dtype="float16")
    cache = write_cache(predict, tmp_path, dtype="bfloat16")
    batch = PaddingCollator()(list(ragged_dataset()))
    outputs = cache.read(range(30), batch)
    torch.testing.assert_close(outputs["logits"], predict(batch)["logits"], rtol=2**-8, atol=0)


def test_a_decoders_logits_follow_its_labels(tmp_path):
    targets = [[7, 8, 9], [6], [9, 8, 7, 6]]
    ids = [[5, 6], [7, 8, 9, 10, 11], [12]]
    columns = {"input_ids": ids, "attention_mask": [[1] * len(x) for x in ids], "labels": targets}
    dataset = datasets.Dataset.from_dict(columns)

    def collator(features):
        labels = [f["labels"] + [-100] * (4 - len(f["labels"])) for f in features]
        features = [{**feature, "labels": 0} for feature in features]
        return {**PaddingCollator()(features), "labels": torch.tensor(labels)}

    def predict(batch):
        return {"logits": F.one_hot(batch["labels"].clamp(min=0), 12).float()}

    with pytest.raises(ValueError, match="logits_mask='labels'"):
        write_cache(predict, tmp_path, dataset, collator=collator)
    options = {"collator": collator, "logits_mask": "labels"}
    cache = write_cache(predict, tmp_path, dataset, **options)
    batch = collator(list(dataset))
    expected = predict(batch)["logits"] * (batch["labels"] != -100)[:, :, None]
    assert torch.equal(cache.read([0, 1, 2], batch)["logits"], expected)


# What is written, and when.


def test_a_cache_that_is_there_is_opened_and_not_written_again(tmp_path):
    teacher = Teacher()
    first = write_cache(teacher, tmp_path)
    probes = 2
    assert teacher.calls > probes
    before, teacher.calls = contents(first.folder), 0
    times = [path.stat().st_mtime_ns for path in first.folder.iterdir()]
    again = write_cache(teacher, tmp_path, with_row_numbers(ragged_dataset()), limit_gb=1e-9)
    assert teacher.calls == probes
    assert again.folder == first.folder
    assert contents(first.folder) == before
    assert times == [path.stat().st_mtime_ns for path in first.folder.iterdir()]


def test_another_ingredient_is_another_cache_and_the_way_of_writing_is_not(tmp_path):
    teacher, dataset = Teacher(), ragged_dataset()

    def key(predict=teacher.logits, rows=dataset, **options):
        return write_cache(predict, tmp_path, rows, **options).folder.name

    shorter = dataset.map(lambda row: {k: row[k][:5] for k in ("input_ids", "attention_mask")})
    keys = [
        key(),
        key(teacher_key="another"),
        key(teacher),
        key(dtype="float16"),
        key(dtype="bfloat16"),
        key(top_k=1),
        key(rows=ragged_dataset(seed=1)),
        key(rows=shorter),
        key(rows=dataset.shuffle(seed=0)),
        key(collator=PaddingCollator("left")),
        key(collator=PaddingCollator(positions=False)),
        key(lambda batch: {"hidden_states": {1: teacher(batch)["hidden_states"][2]}}),
        key(lambda batch: {"hidden_states": {2: teacher(batch)["hidden_states"][2]}}),
    ]
    assert len(set(keys)) == len(keys)
    text = dataset.add_column("sentence", ["a"] * 30)
    same = [
        key(batch_size=3),
        key(limit_gb=1.0),
        key(dtype="float32"),
        key(rows=with_row_numbers(dataset)),
        key(rows=dataset.select(range(29, -1, -1)).select(range(29, -1, -1))),
        key(rows=text),
    ]
    assert set(same) == {keys[0]}


def test_too_large_a_cache_is_refused_before_any_file_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"limit_gb=1e-05 GB, got \d+\.?\d* kB for 30 rows"):
        write_cache(Teacher(), tmp_path / "cache", limit_gb=1e-5)
    assert not (tmp_path / "cache").exists()


def test_a_disk_too_full_for_the_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"kB, and the disk of .* has 1 kB left"):
        write_cache(Teacher(), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def narrow(path):
    np.save(path, np.load(path).astype(np.float16))


def swap(path):
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))


DAMAGES = {
    "truncated": ("hidden_states.1.npy", truncate),
    "of another type": ("logits.npy", narrow),
    "emptied": ("logits.npy", lambda path: path.write_bytes(b"")),
    "missing": ("hidden_states.1.npy", lambda path: path.unlink()),
    "without lengths": ("lengths.attention_mask.npy", lambda path: path.unlink()),
    "of other lengths": (
        "lengths.attention_mask.npy",
        lambda path: np.save(path, np.ones(30, int)),
    ),
    "without a description": ("meta.json", lambda path: path.unlink()),
    "half described": ("meta.json", truncate),
    "of another format": ("meta.json", swap),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_never_read_and_is_written_anew(name, damage, tmp_path, caplog):
    folder = write_cache(token_sums, tmp_path).folder
    before = contents(folder)
    damage(folder / name)
    with pytest.raises(ValueError, match=r"damaged or of another format.*Delete the folder"):
        TeacherCache(folder)
    assert write_cache(token_sums, tmp_path).folder == folder
    assert contents(folder) == before
    assert "damaged; writing it anew" in caplog.text


@pytest.mark.parametrize("cut", [Path.unlink, lambda path: os.truncate(path, 200)])
def test_a_file_that_is_cut_while_a_run_reads_it_is_an_error_and_no_signal(cut, tmp_path):
    """Mapped memory beyond the end of a file ends the process without a word."""
    dataset, collator = ragged_dataset(), PaddingCollator()
    cache = write_cache(token_sums, tmp_path, dataset, collator=collator)
    batch = collator([dataset[i] for i in (28, 29)])
    cache.read([28, 29], batch)
    cut(cache.folder / "logits.npy")
    with pytest.raises(OSError, match=r"logits.npy, got \d+: the teacher's outputs were removed"):
        cache.read([28, 29], batch)
    written = write_cache(token_sums, tmp_path, dataset, collator=collator)
    assert written.read([28, 29], batch).keys() == {"logits", "hidden_states"}


def test_a_disk_that_fills_up_leaves_no_half_a_cache_and_is_named(mounted):
    folder, calls = mounted("size=1m"), []

    def predict(batch):
        calls.append(len(batch["input_ids"]))
        if len(calls) == 4:
            (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free))
        return token_sums(batch)

    with pytest.raises(OSError, match=r"outputs could not be written to .*No space left"):
        write_cache(predict, folder, batch_size=2)
    assert {path.suffix for path in folder.iterdir()} == {".lock", ""}
    (folder / "ballast").unlink()
    assert len(write_cache(token_sums, folder)) == 30


def test_a_teacher_that_fails_halfway_leaves_no_files(tmp_path):
    teacher = Teacher()

    def predict(batch):
        if teacher.calls == 4:
            raise KeyboardInterrupt
        return teacher(batch)

    with pytest.raises(KeyboardInterrupt):
        write_cache(predict, tmp_path, batch_size=2)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_what_others_keep_in_the_folder_survives(tmp_path):
    key, locked, caps = "0" * 32, "a" * 32, "A" * 32
    strangers = ["my_download.partial", f"{key}.partial", f"{locked}0.partial", f"{caps}.partial"]
    for name in [*strangers, f"{locked}.partial"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("precious")
    for lock in ("my_download", f"{locked}0", caps, locked):
        (tmp_path / f"{lock}.lock").touch()
    write_cache(token_sums, tmp_path)
    assert not (tmp_path / f"{locked}.partial").exists()  # a dead run's
    for name in strangers:
        assert (tmp_path / name / "data").read_text() == "precious"
    assert not (tmp_path / f"{key}.lock").exists()


def test_the_size_is_shown_while_rank_0_writes_unless_it_is_told_not_to(tmp_path, capsys):
    cache = write_cache(token_sums, tmp_path, disable_tqdm=False)
    shown = capsys.readouterr().err
    assert f"teacher's outputs, {cache.nbytes / 1000:.3g} kB" in shown
    assert "30/30" in shown
    write_cache(token_sums, tmp_path, teacher_key="another", disable_tqdm=True)
    assert capsys.readouterr().err == ""


# What is refused.


def test_a_collator_that_masks_at_random_is_refused(tmp_path):
    def collator(features):
        batch = PaddingCollator()(features)
        drawn = torch.rand(batch["input_ids"].shape) < 0.15
        return {**batch, "input_ids": batch["input_ids"].masked_fill(drawn, 4)}

    with pytest.raises(ValueError, match=r"two batches for the same rows.*dataset\.map"):
        write_cache(token_sums, tmp_path, collator=collator)


def test_a_collator_that_cuts_rows_is_refused(tmp_path):
    def collator(features):
        return {k: v[:, :4] if v.dim() == 2 else v for k, v in PaddingCollator()(features).items()}

    with pytest.raises(ValueError, match=r"tokens in the batch|without padding"):
        write_cache(
            lambda batch: {"logits": token_sums(batch)["logits"]}, tmp_path, collator=collator
        )


def test_rows_are_numbered_once_and_before_they_are_shuffled(tmp_path):
    numbered = with_row_numbers(ragged_dataset())
    with pytest.raises(ValueError, match="column 'teacher_row' already"):
        with_row_numbers(numbered)
    with pytest.raises(ValueError, match="shuffled or filtered since"):
        write_cache(token_sums, tmp_path, numbered.shuffle(seed=0))


def test_what_is_no_dataset_with_rows_is_refused(tmp_path):
    rows = ragged_dataset()
    for other in (list(rows), rows.to_iterable_dataset(), datasets.DatasetDict(train=rows)):
        for number in (with_row_numbers, lambda x: write_cache(token_sums, tmp_path, x)):
            with pytest.raises(TypeError, match=r"datasets\.Dataset, got \w+"):
                number(other)
    with pytest.raises(ValueError, match="at least one row"):
        write_cache(token_sums, tmp_path, rows.select([]))


def zeros(*shape):
    return lambda batch: torch.zeros(len(batch["labels"]), *shape)


OUTPUTS = {
    "an unknown field": {"pooled": zeros(4)},
    "layers without numbers": {"hidden_states": zeros(LONGEST, 4)},
    "logits without labels": {"logits": zeros()},
    "logits with too many axes": {"logits": zeros(LONGEST, 2, 2)},
    "hidden states without a width": {"hidden_states": {1: zeros(LONGEST)}},
    "hidden states of other tokens": {"hidden_states": {1: zeros(LONGEST + 1, 4)}},
    "attentions without heads": {"attentions": {1: zeros(LONGEST, LONGEST)}},
    "attentions to other tokens": {"attentions": {1: zeros(2, LONGEST, LONGEST - 1)}},
    "rows of another batch": {"logits": lambda batch: torch.zeros(2 * len(batch["labels"]), 2)},
}


@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_whose_tokens_or_rows_are_unclear_are_refused(outputs, tmp_path):
    def predict(batch):
        return {
            name: {i: make(batch) for i, make in value.items()}
            if isinstance(value, dict)
            else value(batch)
            for name, value in outputs.items()
        }

    with pytest.raises(ValueError, match=r"axes|tokens|whose"):
        write_cache(predict, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"limit_gb": 0.0}, "limit_gb above 0"),
        ({"limit_gb": math.nan}, "limit_gb above 0"),
        ({"world_size": 2}, "Expected a barrier for 2 processes"),
        ({"top_k": 0}, r"top_k must lie in \[1, labels - 1\], got 0 for logits of 2"),
        ({"top_k": 2}, r"top_k must lie in \[1, labels - 1\], got 2 for logits of 2"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"logits_mask": "mask"}, "logits_mask must be one of attention_mask, labels"),
    ],
)
def test_options_out_of_range_are_refused_before_any_file_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_cache(token_sums, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_teacher_that_reads_its_padding_is_warned_of(tmp_path, caplog):
    shifted = {"collator": PaddingCollator("left", positions=False)}
    write_cache(Teacher(), tmp_path, collator=PaddingCollator("left"))
    assert "when it is padded" not in caplog.text
    write_cache(Teacher(), tmp_path, **shifted)
    assert "logits of a row are others when it is padded" in caplog.text
    caplog.clear()
    noisy = Teacher(hidden_size=32)
    noisy.model.bert.embeddings.dropout.p = 0.5
    noisy.model.train()
    write_cache(noisy, tmp_path / "noisy")
    assert "in training mode" in caplog.text
