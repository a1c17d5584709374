"""Where one of two processes meets a number that is none, both stop, and say the same."""

import json
import math
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
WAITS = pytest.mark.parametrize("waits", [False, True], ids=["cpu", "as on a GPU"])


@pytest.fixture(scope="module")
def results(tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("finite")
    launch(str(Path(__file__).parent / "run_finite.py"), str(folder))
    return json.loads((folder / "results.json").read_text())


@WAITS
@pytest.mark.parametrize("name", ["distillation", "theseus-logits"])
def test_both_processes_stop_at_one_s_teacher_and_keep_the_earlier_checkpoint(name, waits, results):
    (first, second), folders = results[f"teacher-{name}-{waits}"]
    assert first == second
    words = "Optimizer step 4, micro-batch 1 on process 1, rows 1 of it: expected finite teacher"
    assert first.startswith(f"FloatingPointError: {words}")
    assert folders == ["checkpoint-2"]


@WAITS
def test_both_processes_stop_at_one_s_label(waits, results):
    (first, second), _ = results[f"labels-{waits}"]
    assert first == second
    assert first.startswith("ValueError: Optimizer step 2, micro-batch 1 on process 1, rows 1 of")


def test_a_process_without_labels_beside_one_that_has_some_trains_on(results):
    said, logs = results["half"]
    assert said == ["", ""]
    assert math.isfinite(logs[-1]["train_loss"])
