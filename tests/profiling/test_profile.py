import json

import pytest
import torch
import transformers
from settings import tiny_model
from transformers import BertConfig, BertForSequenceClassification

from kdnlp.data.synthetic import build_config
from kdnlp.evaluation.profile_report import save_profile
from kdnlp.models.student import build_student
from kdnlp.profiling.flops import flops_per_example
from kdnlp.profiling.memory import measure_peak_memory
from kdnlp.profiling.parts import count_parts
from kdnlp.profiling.profile import Profile, profile_model, profile_models
from kdnlp.profiling.size import disk_size_mb, weights_size_mb

QUICK = {"num_warmup": 1, "num_repeats": 3}


def bert(layers, hidden, inner):
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            num_hidden_layers=layers,
            hidden_size=hidden,
            intermediate_size=inner,
            num_attention_heads=hidden // 16,
        )
    ).eval()


@pytest.fixture(scope="module")
def pair():
    teacher = tiny_model("bert", 4).train()
    return {"teacher": teacher, "student": build_student(teacher, 2)}


@pytest.fixture(scope="module")
def profile(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    pair["student"].save_pretrained(folder)
    return profile_models(pair, (1, 3), (8, 16), folders={"student": folder}, **QUICK), folder


def test_every_number_is_that_of_its_model_and_cell(pair, profile):
    found, folder = profile
    assert [model.name for model in found.models] == ["teacher", "student"]
    assert [model.num_layers for model in found.models] == [4, 2]
    for account, model in zip(found.models, pair.values(), strict=True):
        assert account.architecture == "BertForSequenceClassification"
        assert account.parameters == count_parts(model)
        assert account.size_mb == weights_size_mb(model)
        rows = [cell.latency for cell in account.cells]
        assert [(r.sequence_length, r.batch_size) for r in rows] == [
            (8, 1),
            (8, 3),
            (16, 1),
            (16, 3),
        ]
        for cell in account.cells:
            flops = flops_per_example(model, cell.latency.sequence_length)
            assert (cell.flops_per_example, cell.macs_per_example) == (flops.flops, flops.macs)
            assert cell.flops_per_second == pytest.approx(
                flops.flops * cell.latency.batch_size / cell.latency.p50_ms * 1000
            )
            assert sum(cell.time.parts.values()) == pytest.approx(cell.latency.p50_ms)
            assert 0 < cell.latency.p50_ms <= cell.latency.p90_ms <= cell.latency.p99_ms
    assert found.reference.disk_size_mb is None
    assert found.models[1].disk_size_mb == disk_size_mb(folder)


def test_peak_memory_is_that_of_the_cells_own_shape(pair, profile):
    small, *_, large = profile[0].reference.cells
    assert large.memory.activations_mb > 4 * small.memory.activations_mb
    assert large.memory.weights_mb == small.memory.weights_mb
    direct = measure_peak_memory(pair["teacher"].eval(), _inputs(pair["teacher"], 3, 16))
    pair["teacher"].train()
    assert large.memory == direct


def _inputs(model, batch_size, length):
    ids = torch.full((batch_size, length), 5)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_the_others_are_compared_with_the_first(profile):
    teacher, student = profile[0].models
    for before, after in zip(teacher.cells, student.cells, strict=True):
        assert before.speedup is before.agreement is None
        assert after.speedup.rounds == 3
        assert after.agreement.speedup == after.speedup.ratio
        ratio = before.flops_per_example / after.flops_per_example
        assert after.agreement.flops_ratio == ratio
        gap = after.latency.p50_ms - before.latency.p50_ms / ratio
        assert after.agreement.gap_ms == pytest.approx(gap)


def test_measuring_leaves_the_models_as_they_were(pair, profile):
    assert [model.training for model in pair.values()] == [True, pair["student"].training]
    assert all(not m._forward_hooks for model in pair.values() for m in model.modules())


def test_a_saved_profile_is_read_back_whole(profile, tmp_path):
    save_profile(profile[0], tmp_path)
    assert Profile.load(tmp_path) == profile[0]


def test_a_profile_of_another_format_is_refused_and_not_misread(profile, tmp_path):
    values = profile[0].to_dict()
    (tmp_path / "profile.json").write_text(json.dumps({**values, "format": 0}))
    with pytest.raises(ValueError, match=r"format 1, got 0.*run `kdnlp profile` again"):
        Profile.load(tmp_path)
    (tmp_path / "profile.json").write_text(json.dumps({"format": 1, "models": []}))
    with pytest.raises(ValueError, match="does not hold a profile"):
        Profile.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"profile\.json in .*found none"):
        Profile.load(tmp_path / "not there")


def test_few_flops_in_many_small_operations_raise_the_flag_and_name_the_overhead():
    models = {"wide": bert(2, 256, 1024), "deep": bert(24, 16, 16)}
    found = profile_models(models, (4,), (16,), num_warmup=1, num_repeats=8)
    (deep,) = found.models[1].cells
    assert deep.agreement.flops_ratio > 15
    assert deep.speedup.high < 5
    assert deep.agreement.disagrees
    assert deep.agreement.eaten_by == "overhead"
    assert found.disagreements == [("deep", deep)]


def test_a_plain_student_of_half_the_blocks_raises_no_flag():
    teacher = bert(4, 192, 768)
    models = {"teacher": teacher, "student": build_student(teacher, 2)}
    found = profile_models(models, (8,), (64,), num_warmup=1, num_repeats=8)
    (cell,) = found.models[1].cells
    assert cell.agreement.flops_ratio == pytest.approx(2.0, abs=0.01)
    assert found.disagreements == []


def test_the_allowed_disagreement_is_the_callers():
    models = {"wide": bert(1, 64, 64), "deep": bert(12, 16, 16)}
    found = profile_models(models, (1,), (4,), max_disagreement=1e6, **QUICK)
    assert found.disagreements == []
    assert found.models[1].cells[0].agreement.max_difference == 1e6


# The measures are each tested over all of them.
@pytest.mark.parametrize("name", ["deberta-v2", "gpt2", "t5-encoder"])
def test_other_families_can_be_profiled(name):
    found = profile_model(tiny_model(name, 2), name, batch_sizes=(1,), lengths=(8,), **QUICK)
    assert (found.name, found.num_layers, len(found.cells)) == (name, 2, 1)
    assert found.cells[0].speedup is None


def test_another_dtype_is_measured_and_stated():
    model = tiny_model("bert", 1)
    found = profile_models({"m": model}, (1,), (8,), dtype=torch.bfloat16, **QUICK)
    assert found.setting.dtype == "bfloat16"
    assert found.reference.size_mb == pytest.approx(weights_size_mb(model) / 2)
    assert model.dtype == torch.float32


def test_the_setting_says_what_the_numbers_depend_on(profile):
    setting = profile[0].setting
    assert setting.device.startswith("CPU (")
    assert setting.processor
    assert (setting.dtype, setting.attention) == ("float32", "sdpa")
    assert setting.threads == torch.get_num_threads()
    assert setting.versions["torch"] == torch.__version__
    assert {"python", "transformers", "numpy"} <= set(setting.versions)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"lengths": ()}, ValueError, "at least one length"),
        ({"batch_sizes": ()}, ValueError, "at least one model and one batch size"),
        ({"num_repeats": 2}, ValueError, "num_repeats of at least 3"),
        ({"max_disagreement": -1.0}, ValueError, "share of disagreement of at least 0"),
        ({"lengths": (8, 1000)}, ValueError, "at most 512"),
        ({"folders": {"m": "not there"}}, FileNotFoundError, r"Expected model\.safetensors"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_time_is_spent(
    values, error, message, monkeypatch
):
    monkeypatch.setattr("kdnlp.profiling.profile.time_rounds", None)
    with pytest.raises(error, match=message):
        profile_models({"m": tiny_model("bert", 1)}, **values)


def test_a_choice_is_an_example_of_a_model_for_multiple_choice():
    options = {"batch_sizes": (1, 3), "lengths": (8,), **QUICK}
    choice, one = (
        profile_model(getattr(transformers, f"BertFor{head}")(build_config(2, 32)), **options)
        for head in ("MultipleChoice", "SequenceClassification")
    )
    shapes = [(c.latency.batch_size, c.latency.sequence_length) for c in choice.cells]
    assert shapes == [(1, 8), (3, 8)]
    for ours, theirs in zip(choice.cells, one.cells, strict=True):
        assert ours.flops["attention"] == theirs.flops["attention"] > 0


@pytest.mark.gpu
def test_a_gpu_is_profiled_and_the_model_comes_back():
    model = tiny_model("bert", 2)
    found = profile_models({"m": model}, (4,), (32,), device="cuda", num_repeats=6)
    (cell,) = found.reference.cells
    assert cell.time.overhead > 0
    assert min(cell.time.attention, cell.time.feed_forward) > 0
    assert sum(cell.time.parts.values()) == pytest.approx(cell.latency.p50_ms)
    assert cell.memory.source == "max_memory_allocated"
    assert "cuda" in found.setting.versions
    assert model.device.type == "cpu"
