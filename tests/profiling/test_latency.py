import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from settings import tiny_batch, tiny_model
from transformers import LEDConfig, LEDForConditionalGeneration

from kdnlp.profiling import latency, rounds
from kdnlp.profiling.forward import max_positions
from kdnlp.profiling.latency import LatencyRow, describe_setting, measure_latency
from kdnlp.profiling.rounds import MIN_REPEATS


class FakeTimer:
    """Takes the place of one timed pass: notes it, and lets a clock of its own go on."""

    def __init__(self, models, cost=lambda name, inputs, turn: 1.0):
        self.names = {id(model): name for name, model in models.items()}
        self.cost, self.now, self.passes = cost, 0.0, []

    def __call__(self, model, inputs, device):
        name = self.names.get(id(model), "copy")
        seconds = self.cost(name, inputs, len(self.passes))
        self.passes.append((name, tuple(inputs["input_ids"].shape), model, dict(inputs)))
        self.now += seconds
        return seconds * 1000

    @property
    def order(self):
        return [name for name, *_ in self.passes]


@pytest.fixture
def fake(monkeypatch):
    def install(models, cost=lambda name, inputs, turn: 1.0):
        timer = FakeTimer(models, cost)
        monkeypatch.setattr(rounds, "_time_once", timer)
        monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: timer.now))
        return timer

    return install


def models_named(*names):
    return {name: tiny_model("bert", 1, seed=n) for n, name in enumerate(names)}


def test_a_model_at_home_is_not_moved_and_none_is_under_inference_mode(monkeypatch):
    """Quantized weights of torchao cannot be set anew there."""
    moved = []

    def noted(module, *where, **types):
        moved.append(torch.is_inference_mode_enabled())
        return module

    monkeypatch.setattr(torch.nn.Module, "to", noted)
    options = {"batch_sizes": (1,), "num_warmup": 1, "num_repeats": MIN_REPEATS}
    measure_latency(models_named("a"), sequence_length=8, **options)
    assert moved == []
    measure_latency(models_named("a"), sequence_length=8, dtype=torch.float64, **options)
    assert moved == [False]


def test_models_are_really_run_and_rows_come_by_batch_size_and_model():
    models = {"teacher": tiny_model("bert", 4), "student": tiny_model("distilbert", 2)}
    rows = measure_latency(models, (4, 1), sequence_length=8, num_warmup=1, num_repeats=4)
    assert [(row.batch_size, row.model) for row in rows] == [
        (4, "teacher"),
        (4, "student"),
        (1, "teacher"),
        (1, "student"),
    ]
    for row in rows:
        assert (row.sequence_length, row.repeats) == (8, 4)
        assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
        assert row.examples_per_second == pytest.approx(row.batch_size * 1000 / row.p50_ms)


def test_every_timed_pass_is_one_forward_in_eval_mode_without_gradients():
    model, seen = tiny_model("bert", 1).train(), []

    def watch(module, args, inputs):
        seen.append((module.training, torch.is_grad_enabled(), args, sorted(inputs)))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    measure_latency({"m": model}, (2,), sequence_length=8, num_warmup=2, num_repeats=3)
    assert seen == [(False, False, (), ["attention_mask", "input_ids"])] * 5


def test_models_take_turns_and_the_first_place_moves_on(fake):
    models = models_named("a", "b", "c")
    timer = fake(models)
    measure_latency(models, (1, 2), sequence_length=4, num_warmup=2, num_repeats=5)
    rounds = ["abc", "bca", "cab", "abc", "bca", "cab", "abc"]
    assert "".join(timer.order) == "".join(rounds) * 2
    shapes = [shape for _, shape, *_ in timer.passes]
    assert shapes == [(1, 4)] * 21 + [(2, 4)] * 21


def test_all_models_see_the_same_full_batches(fake):
    models = models_named("a", "b")
    timer = fake(models)
    measure_latency(models, (3,), sequence_length=6, num_repeats=3)
    batches = [inputs for *_, inputs in timer.passes]
    for inputs in batches:
        assert torch.equal(inputs["input_ids"], batches[0]["input_ids"])
        assert inputs["attention_mask"].all()
        assert not (inputs["input_ids"] == models["a"].config.pad_token_id).any()


def test_a_speed_up_is_over_the_first_model_round_by_round(fake):
    models = models_named("a", "b")
    # Every round takes longer than the last, and model b half as long as model a in each.
    fake(models, lambda name, _, turn: (1.0 if name == "a" else 0.5) * (1 + turn // 2))
    first, second = measure_latency(models, (1,), sequence_length=4, num_repeats=9)
    assert first.speedup is None
    speedup = second.speedup
    assert (speedup.ratio, speedup.low, speedup.high) == pytest.approx((2.0, 2.0, 2.0))
    assert (speedup.rounds, speedup.confidence) == (9, 0.95)


def test_medians_are_over_timed_passes_and_not_over_warm_up(fake):
    models = models_named("a", "b")
    # Warm-up passes take a second or two; then 1, 4, 9, ... ms, and model b twice as long.
    slow = {"a": 1.0, "b": 2.0}
    timer = fake(
        models, lambda n, _, turn: slow[n] * (1.0 if turn < 4 else (turn // 2 - 1) ** 2 / 1e3)
    )
    rows = measure_latency(models, (8,), sequence_length=4, num_warmup=2, num_repeats=9)
    milliseconds = [n**2 for n in range(1, 10)]  # Their mean, 31.7, is not their median, 25.
    for row, factor in zip(rows, (1, 2), strict=True):
        assert row.p50_ms == pytest.approx(factor * statistics.median(milliseconds))
        assert row.p90_ms == pytest.approx(factor * (64 + 0.2 * (81 - 64)))
        for percent, value in ((90, row.p90_ms), (99, row.p99_ms)):
            assert value == pytest.approx(factor * np.percentile(milliseconds, percent))
        assert row.examples_per_second == pytest.approx(8 / (factor * 25) * 1000)
        assert row.repeats == 9
    assert len(timer.passes) == 2 * (2 + 9)


@pytest.mark.parametrize(
    ("max_seconds", "timed"),
    [(0.0, 3), (1.0, 3), (19.0, 3), (23.0, 4), (27.0, 5), (43.0, 9), (400.0, 9)],
)
def test_a_budget_is_shared_by_the_batch_sizes_and_kept(max_seconds, timed, fake):
    models = models_named("a", "b")  # One round takes 2 s on the fake clock, and 2 are warm-up.
    timer = fake(models)
    rows = measure_latency(
        models, (1, 2), sequence_length=4, num_warmup=2, num_repeats=9, max_seconds=max_seconds
    )
    assert [row.repeats for row in rows] == [timed] * 4
    minimum = 2 * 2 * (2 + MIN_REPEATS)
    assert timer.now <= max(max_seconds + 2 * 2, minimum)


def test_a_spent_budget_still_warms_up_once_and_times_the_minimum(fake):
    models = models_named("a")
    timer = fake(models)
    rows = measure_latency(
        models, (1,), sequence_length=4, num_warmup=50, num_repeats=50, max_seconds=0.0
    )
    assert rows[0].repeats == MIN_REPEATS
    assert len(timer.passes) == 1 + MIN_REPEATS


def test_a_slow_batch_size_cannot_use_up_the_next_ones_share(fake):
    models = models_named("a")
    fake(models, lambda _, inputs, turn: 100.0 if len(inputs["input_ids"]) == 32 else 1.0)
    rows = measure_latency(
        models, (32, 1), sequence_length=4, num_warmup=1, num_repeats=9, max_seconds=40.0
    )
    assert [row.repeats for row in rows] == [MIN_REPEATS, 9]


def state(model):
    return (
        [module.training for module in model.modules()],
        [(id(p), p.data_ptr(), p.dtype, p.device, p.requires_grad) for p in model.parameters()],
        [(name, b.dtype, b.device, b.is_inference()) for name, b in model.named_buffers()],
    )


def partly_frozen_model():
    model = tiny_model("bert", 2).train()
    model.bert.encoder.layer[0].eval()
    model.classifier.requires_grad_(False)
    return model


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_modes_dtypes_and_weights_are_left_as_they_were(dtype):
    model = partly_frozen_model()
    before, weights = state(model), {k: v.clone() for k, v in model.state_dict().items()}
    measure_latency({"m": model}, (2,), 8, 1, 3, device="cpu", dtype=dtype)
    assert state(model) == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    model(**tiny_batch()).loss.backward()  # Tensors made in inference mode would refuse.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_really_the_one_that_is_timed(dtype, fake):
    models = models_named("a")
    timer = fake(models)
    measure_latency(models, (1,), sequence_length=4, num_repeats=3, dtype=dtype)
    assert {model.dtype for *_, model, _ in timer.passes} == {dtype}
    assert set(timer.order) == {"copy"}
    assert models["a"].dtype == torch.float32


def test_a_model_that_fails_is_put_back_too(fake):
    model = partly_frozen_model()
    before = state(model)

    def fail(name, inputs, turn):
        raise RuntimeError("out of memory")

    fake({"m": model}, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_latency({"m": model}, (1,), sequence_length=4)
    assert state(model) == before


@pytest.mark.gpu
def test_a_model_comes_back_from_the_gpu_and_still_trains():
    model = partly_frozen_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_latency({"m": model}, (2,), 8, 1, 3, device="cuda")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    model(**tiny_batch()).loss.backward()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": {}}, "at least one model and one batch size"),
        ({"batch_sizes": ()}, "at least one model and one batch size"),
        ({"batch_sizes": (0,)}, "must be at least 1, got 0 and 8"),
        ({"batch_sizes": (1, -4)}, "must be at least 1, got -4 and 8"),
        ({"sequence_length": 0}, "must be at least 1, got 1 and 0"),
        ({"num_warmup": 0}, "num_warmup of at least 1"),
        ({"num_repeats": MIN_REPEATS - 1}, f"at least {MIN_REPEATS}, got 3 and 2"),
        ({"sequence_length": 21}, "at most 20, the positions that BertForSequenceClassification"),
    ],
)
def test_a_request_that_measures_nothing_real_is_refused(values, message, fake):
    model = tiny_model("bert", 1, max_position_embeddings=20).train()
    fake({"m": model})
    request = {"models": {"m": model}, "batch_sizes": (1,), "sequence_length": 8, **values}
    with pytest.raises(ValueError, match=message):
        measure_latency(**request)
    assert all(module.training for module in model.modules())


def test_distances_alone_know_no_longest_text():
    relative = {"max_position_embeddings": 20, "position_biased_input": False}
    assert max_positions(tiny_model("deberta-v2", 1, **relative)) is None
    assert max_positions(tiny_model("deberta-v2", 1, max_position_embeddings=20)) == 20
    assert max_positions(tiny_model("roberta", 1, max_position_embeddings=20, pad_token_id=1)) == 18


def test_a_decoder_s_table_counts_too():
    sizes = {f"{side}_{n}": 2 for side in ("encoder", "decoder") for n in ("layers", "ffn_dim")}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    tables = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 16}
    config = LEDConfig(vocab_size=40, d_model=8, attention_window=4, **sizes, **heads, **tables)
    assert max_positions(LEDForConditionalGeneration(config)) == 16


def test_the_shortest_positions_of_all_models_count(fake):
    models = {"long": tiny_model("bert"), "short": tiny_model("bert", max_position_embeddings=20)}
    timer = fake(models)
    with pytest.raises(ValueError, match="at most 20"):
        measure_latency(models, (1,), sequence_length=21)
    assert not timer.passes


def test_a_model_over_several_devices_is_refused_and_not_gathered():
    model = tiny_model("bert")
    model.classifier.to("meta")
    with pytest.raises(ValueError, match=r"on one device, got .* on cpu, meta"):
        measure_latency({"m": model}, (1,), sequence_length=8)
    assert model.classifier.weight.device.type == "meta"


def test_a_row_cannot_be_changed_after_the_fact():
    row = LatencyRow("m", 1, 8, 2.0, 500.0, 3)
    with pytest.raises(AttributeError):
        row.p50_ms = 1.0


def test_a_row_from_before_p90_and_p99_were_kept_is_still_read():
    old = {"model": "m", "batch_size": 1, "sequence_length": 8, "p50_ms": 2.0, "p95_ms": 3.0}
    row = LatencyRow.from_dict({**old, "examples_per_second": 500.0, "repeats": 30})
    assert (row.p50_ms, row.p90_ms, row.p99_ms) == (2.0, None, None)


def test_the_setting_names_what_the_numbers_depend_on():
    one, two = tiny_model("bert"), tiny_model("bert", attn_implementation="eager").bfloat16()
    setting = describe_setting({"one": one}, 64)
    assert setting.device.startswith("CPU (")
    assert (setting.dtype, setting.sequence_length) == ("float32", 64)
    assert (setting.attention, setting.threads) == ("sdpa", torch.get_num_threads())
    assert (setting.torch, setting.transformers) == (
        torch.__version__,
        latency.transformers.__version__,
    )
    mixed = describe_setting({"one": one, "two": two})
    assert mixed.dtype == "one: float32, two: bfloat16"
    assert mixed.attention == "one: sdpa, two: eager"
    assert describe_setting({"one": one, "two": two}, dtype=torch.float16).dtype == "float16"
