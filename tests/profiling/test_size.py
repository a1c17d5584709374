import json
import shutil

import pytest
import torch
from settings import tiny_model
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from kdnlp.models.student import build_student
from kdnlp.profiling.size import count_parameters, disk_size_mb, weights_size_mb


def bert_counts(layers, hidden, intermediate, vocabulary, positions, labels):
    """BERT with a classifier, by hand: all parameters, and those in its three tables."""
    tables = (vocabulary + positions + 2) * hidden
    norm = 2 * hidden
    block = 4 * (hidden * hidden + hidden) + 2 * norm
    block += 2 * hidden * intermediate + intermediate + hidden
    pooler, classifier = hidden * hidden + hidden, hidden * labels + labels
    return tables + norm + layers * block + pooler + classifier, tables


SIZES = [(12, 768, 3072, 30522, 512, 2), (6, 768, 3072, 30522, 512, 3), (2, 32, 48, 40, 20, 5)]


@pytest.mark.parametrize("sizes", SIZES)
def test_bert_has_the_parameters_of_its_closed_form(sizes):
    layers, hidden, intermediate, vocabulary, positions, labels = sizes
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 16,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        num_labels=labels,
    )
    with torch.device("meta"):
        count = count_parameters(BertForSequenceClassification(config))
    total, tables = bert_counts(*sizes)
    assert (count.total, count.embeddings) == (total, tables)
    assert count.without_embeddings == total - tables


# Xu et al. 2020: 110M for BERT-base; 66M, 24M of them embeddings, for its six-layer successor.
def test_the_papers_sizes_are_reproduced():
    assert round(bert_counts(*SIZES[0])[0] / 1e6, 1) == 109.5
    total, tables = bert_counts(*SIZES[1])
    assert (round(total / 1e6), round(tables / 1e6), round((total - tables) / 1e6)) == (67, 24, 43)


def test_half_the_blocks_are_gone_and_nothing_else():
    model = tiny_model("bert", num_layers=4)
    student = build_student(model, 2)
    blocks = sum(p.numel() for block in model.bert.encoder.layer[:2] for p in block.parameters())
    whole, half = count_parameters(model), count_parameters(student)
    assert whole.total - half.total == blocks
    assert whole.embeddings == half.embeddings


def masked_lm(tied):
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=48,
        num_hidden_layers=1,
        max_position_embeddings=20,
        tie_word_embeddings=tied,
    )
    return BertForMaskedLM(config)


def test_a_tied_output_layer_is_counted_once_and_as_embeddings():
    tied, untied = masked_lm(True), masked_lm(False)
    assert tied.cls.predictions.decoder.weight is tied.bert.embeddings.word_embeddings.weight
    extra = count_parameters(untied).total - count_parameters(tied).total
    assert extra == 300 * 32 + 300  # The decoder's matrix, and its bias beside the tied one.
    assert count_parameters(tied).embeddings == (300 + 20 + 2) * 32
    assert count_parameters(untied).embeddings == (300 + 20 + 2) * 32


def test_two_tables_that_share_a_matrix_are_one():
    model = nn.ModuleDict({"a": nn.Embedding(7, 3), "b": nn.Embedding(7, 3), "c": nn.Linear(3, 7)})
    model["b"].weight = model["c"].weight = model["a"].weight
    count = count_parameters(model)
    assert (count.total, count.embeddings, count.without_embeddings) == (7 * 3 + 7, 7 * 3, 7)


def test_frozen_parameters_count_and_buffers_do_not():
    model = tiny_model("bert")
    before = count_parameters(model)
    model.requires_grad_(False)
    model.register_buffer("table", torch.zeros(1000))
    assert count_parameters(model) == before


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_weights_weigh_their_own_dtype(dtype, width):
    model = tiny_model("bert").to(dtype)
    assert weights_size_mb(model) == pytest.approx(count_parameters(model).total * width / 1e6)


def test_mixed_dtypes_are_summed_each_by_itself():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10).half())
    assert weights_size_mb(model) == pytest.approx((110 * 4 + 110 * 2) / 1e6)


def test_persistent_buffers_weigh_and_others_do_not():
    model = nn.BatchNorm1d(10)  # Weight and bias, two running statistics, and a step counter.
    assert weights_size_mb(model) == pytest.approx((4 * 10 * 4 + 8) / 1e6)
    model.register_buffer("scratch", torch.zeros(1000), persistent=False)
    assert weights_size_mb(model) == pytest.approx((4 * 10 * 4 + 8) / 1e6)


def header_bytes(file):
    """Length of a safetensors header, its own 8-byte length included."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        json.loads(stream.read(length))
    return 8 + length


@pytest.mark.parametrize("build", [lambda: tiny_model("bert"), lambda: masked_lm(True)])
def test_the_disk_holds_the_weights_and_a_header(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert disk_size_mb(tmp_path) == file.stat().st_size / 1e6
    assert disk_size_mb(str(tmp_path)) == disk_size_mb(tmp_path)
    data = file.stat().st_size - header_bytes(file)
    assert weights_size_mb(model) == pytest.approx(data / 1e6)


def test_shards_are_summed_and_other_files_are_not(tmp_path):
    model = tiny_model("bert")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    (tmp_path / "optimizer.pt").write_bytes(bytes(10_000))
    (tmp_path / "adapter.safetensors").write_bytes(bytes(10_000))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(bytes(10_000))
    assert disk_size_mb(tmp_path) == sum(shard.stat().st_size for shard in shards) / 1e6
    data = sum(shard.stat().st_size - header_bytes(shard) for shard in shards)
    assert weights_size_mb(model) == pytest.approx(data / 1e6)


def test_what_an_earlier_save_left_behind_is_not_counted(tmp_path):
    tiny_model("bert", num_layers=1).save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    (tmp_path / "model-00099-of-00099.safetensors").write_bytes(bytes(10_000))
    assert disk_size_mb(tmp_path) == sum(shard.stat().st_size for shard in shards) / 1e6
    # A file of all weights goes before any shards, as it does for transformers.
    model = tiny_model("bert", num_layers=2)
    model.save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path, dirs_exist_ok=True)
    whole = tmp_path / "model.safetensors"
    assert disk_size_mb(tmp_path) == whole.stat().st_size / 1e6
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert weights_size_mb(loaded) == weights_size_mb(model)


def test_a_tensor_of_several_weighs_what_they_do():
    one = nn.Linear(3, 4, bias=False)
    one.weight = nn.Parameter(TwoTensor(torch.zeros(4, 3), torch.zeros(4, 3)))
    assert weights_size_mb(one) * 1e6 == 2 * 4 * 12


@pytest.mark.parametrize("folder", [".", "not there"])
def test_a_folder_without_weights_is_not_a_model_of_zero_megabytes(folder, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"Expected model\.safetensors"):
        disk_size_mb(tmp_path / folder)
