"""The peak is what counting by hand finds, to the byte."""

import pytest
import torch
from settings import ARCHITECTURES, tiny_model
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.memory import measure_peak_memory, peak_of_trace
from kdnlp.profiling.size import weights_size_mb

FLOAT = 4


class TwoMaps(PreTrainedModel):
    """A wide state between two linear maps; small enough to follow by hand."""

    config_class = PretrainedConfig

    def __init__(self, forward):
        super().__init__(PretrainedConfig())
        self.wide = nn.Linear(100, 2000, bias=False)
        self.narrow = nn.Linear(2000, 10, bias=False)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def keeping(model, x):
    wide = model.wide(x)
    return model.narrow(wide.tanh())  # two wide states are there at once


def in_place(model, x):
    return model.narrow(model.wide(x).relu_())


def one_after_the_other(model, x):
    for _ in range(5):
        result = model.narrow(model.wide(x))
    return result


@pytest.mark.parametrize(
    ("forward", "numbers"),
    [
        (keeping, 2 * 30 * 2000 + 30 * 10),
        (in_place, 30 * 2000 + 30 * 10),
        # The last round's result lives while the next one's wide state is there.
        (one_after_the_other, 30 * 2000 + 2 * 30 * 10),
    ],
)
def test_the_peak_is_that_of_counting_by_hand(forward, numbers):
    memory = measure_peak_memory(TwoMaps(forward).eval(), {"x": torch.randn(30, 100)})
    assert memory.activations_mb * 1e6 == pytest.approx(numbers * FLOAT, abs=128)
    assert memory.weights_mb * 1e6 == (100 * 2000 + 2000 * 10) * FLOAT
    assert memory.total_mb == memory.weights_mb + memory.activations_mb
    assert memory.source == "torch profiler, allocations"


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_activations_grow_with_the_batch_and_weights_do_not(name):
    model = tiny_model(name, 2)
    one, four = (measure_peak_memory(model, example_inputs(model, n, 16)) for n in (1, 4))
    assert one.weights_mb == four.weights_mb >= weights_size_mb(model)
    assert 3 < four.activations_mb / one.activations_mb < 4.5


def test_half_the_precision_is_half_the_memory():
    model = tiny_model("bert", 2)
    whole = measure_peak_memory(model, example_inputs(model, 8, 16))
    half = measure_peak_memory(model.bfloat16(), example_inputs(model, 8, 16))
    assert half.weights_mb == pytest.approx(whole.weights_mb / 2, rel=0.2)  # ids stay int64
    assert half.activations_mb < 0.7 * whole.activations_mb


def memory_event(ts, size, address, device=0):
    args = {"Bytes": size, "Addr": address, "Device Type": device}
    return {"name": "[memory]", "ts": ts, "args": args}


def test_a_trace_is_added_up_in_the_order_of_time():
    events = [
        memory_event(5, 10, 1),
        {"name": "aten::add", "ts": 1, "args": {}},
        memory_event(1, 100, 7),
        memory_event(2, -100, 7),
        memory_event(3, 60, 7),
        memory_event(4, 30, 8),
        memory_event(6, -500, 99),  # freed here, allocated before
        memory_event(7, 10_000, 5, device=1),
    ]
    assert peak_of_trace({"traceEvents": events}) == 100
    assert peak_of_trace({"traceEvents": events[:1] + events[4:]}) == 100
    assert peak_of_trace({"traceEvents": []}) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gpu_measures_like_the_cpu(name):
    model = tiny_model(name, 2)
    here = measure_peak_memory(model, example_inputs(model, 8, 64))
    model.cuda()
    there = measure_peak_memory(model, example_inputs(model, 8, 64))
    assert there.source == "max_memory_allocated"
    assert there.weights_mb == here.weights_mb
    assert there.activations_mb == pytest.approx(here.activations_mb, rel=1.0)
