import time
from types import SimpleNamespace

import pytest
import torch
from settings import ARCHITECTURES, tiny_model

from kdnlp.profiling import module_time
from kdnlp.profiling.forward import example_inputs
from kdnlp.profiling.module_time import (
    _launch_cost,
    _pieces,
    _scaled,
    _sum_by_part,
    measure_module_time,
)
from kdnlp.profiling.parts import find_parts

PATHS = {
    "embeddings": "bert.embeddings",
    "attention": "bert.encoder.layer.1.attention",
    "feed_forward": "bert.encoder.layer.0.intermediate",
    "other": "bert.pooler",
}


def event(name, us, *children, device_us=0.0):
    """One operation of a profile, as torch's profiler tells of it."""
    own = us - sum(child.cpu_time_total for child in children)
    return SimpleNamespace(
        name=name,
        cpu_time_total=us,
        self_cpu_time_total=own,
        device_time_total=device_us + sum(child.device_time_total for child in children),
        cpu_children=list(children),
    )


def a_pass():
    """100 us: embeddings 20, attention 35, feed-forward 20, the rest."""
    lookup = event("aten::embedding", 15, device_us=4)
    linear = event("aten::linear", 20, event("aten::t", 3), event("aten::addmm", 10), device_us=9)
    small = event("aten::add", 2, device_us=1)
    inside = event("kdnlp::embeddings", 5, event("aten::embedding", 3, device_us=2))
    return event(
        "kdnlp::pass",
        100,
        event("kdnlp::embeddings", 20, lookup),
        event("kdnlp::attention", 35, linear, inside),
        event("aten::tanh", 8, device_us=3),
        event("kdnlp::feed_forward", 20, small),
    )


def test_what_an_operation_takes_beyond_its_launch_belongs_to_its_part():
    sums = _sum_by_part([_pieces(a_pass(), launch=2.0, on_device=False)])
    assert sums == {
        "embeddings": (15 - 2) + (3 - 2),  # an inner range takes its own
        "attention": 20 - 3 * 2,  # three operations are launched in a linear map
        "feed_forward": 0.0,
        "other": 8 - 2,
        "overhead": 17 + 5 + 10 + 2 + 18 + 2 + 6 + 2 + 2 + 2,
    }
    assert sum(sums.values()) == 100


def test_on_a_gpu_the_kernels_are_counted():
    sums = _sum_by_part([_pieces(a_pass(), launch=0.0, on_device=True)])
    expected = {"embeddings": 6, "attention": 9, "feed_forward": 1, "other": 3, "overhead": 0}
    assert sums == expected
    found = _scaled({part: 1000.0 * us for part, us in sums.items()}, 30.0, 60.0, on_device=True)
    assert found.parts == {**expected, "overhead": 30 - 19}
    assert found.profiler_slowdown == 2.0


def test_kernels_that_overlap_leave_no_time_below_zero():
    parts = {"embeddings": 0.0, "attention": 8e3, "feed_forward": 12e3, "other": 0.0}
    found = _scaled({**parts, "overhead": 0.0}, 10.0, 20.0, on_device=True)
    assert (found.attention, found.feed_forward, found.overhead) == (4.0, 6.0, 0.0)


def test_a_disturbance_of_one_pass_is_outvoted_operation_by_operation():
    steady = [("attention", 5.0), ("other", 2.0), ("attention", 7.0)]
    passes = [
        [(part, us * (50 if at == hit else 1)) for at, (part, us) in enumerate(steady)]
        for hit in range(3)
    ]
    sums = _sum_by_part([*passes, [("other", 1e6)]])
    assert (sums["attention"], sums["other"]) == (12.0, 2.0)


def test_the_cost_of_a_launch_is_the_median_of_the_smallest_operations():
    ranges = [event("kdnlp::smallest", 5, event("aten::neg", us)) for us in (1.0, 2.0, 90.0)]
    assert _launch_cost([*ranges, event("aten::add", 50)]) == 2.0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_part_of_every_family_takes_time_and_they_sum_to_the_pass(name):
    model = tiny_model(name, 2)
    # Large enough for the lookup to take longer than the launch that is taken off it.
    found = measure_module_time(model, example_inputs(model, 32, 16), p50_ms=10.0, num_passes=3)
    assert sum(found.parts.values()) == pytest.approx(10.0)
    assert min(found.embeddings, found.attention, found.feed_forward, found.overhead) > 0
    assert found.other >= 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def plant(monkeypatch, model, path, work):
    """Let a module do more than it needs to."""
    module = model.get_submodule(path)
    forward = module.forward

    def slower(*args, **kwargs):
        work()
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", slower)


def large_operations():
    square = torch.ones(400, 400)
    for _ in range(10):
        square @ square


def small_operations():
    number = torch.ones(1)
    for _ in range(1500):
        number + number


@pytest.mark.parametrize("part", PATHS)
@pytest.mark.parametrize(
    ("work", "overhead"),
    [
        (large_operations, False),
        (small_operations, True),
        (lambda: time.sleep(0.05), True),
    ],
    ids=["large operations", "small operations", "python"],
)
def test_planted_work_is_found_where_it_was_planted(part, work, overhead, monkeypatch):
    model = tiny_model("bert", 2)
    plant(monkeypatch, model, PATHS[part], work)
    found = measure_module_time(model, example_inputs(model, 1, 4), p50_ms=1.0, num_passes=3)
    assert found.parts["overhead" if overhead else part] > 0.6


def test_a_model_that_fails_is_left_without_hooks(monkeypatch):
    model = tiny_model("bert", 2)
    inputs = example_inputs(model, 1, 4)

    def fail():
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        plant(patch, model, PATHS["feed_forward"], fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            measure_module_time(model, inputs, 1.0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert measure_module_time(model, inputs, 1.0, num_passes=1).attention > 0


def test_a_range_is_closed_where_its_module_fails(monkeypatch):
    """An open one would be the parent of whatever is profiled next."""
    model, names = tiny_model("bert", 2), []

    class Noted:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            names.append(self.name)

        def __exit__(self, *exception):
            names.remove(self.name)

    def fail():
        assert names == ["kdnlp::attention"]
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module_time, "record_function", Noted)
    plant(monkeypatch, model, PATHS["attention"], fail)
    with module_time.ranges(find_parts(model)), pytest.raises(RuntimeError, match="out of memory"):
        model(**example_inputs(model, 1, 4))
    assert names == []
