"""How much faster the students are: measured once for a device, for the weights do not matter."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.glue.results import Results
from benchmarks.glue.train import Place, describe_machine
from kdnlp import GLUE_TASKS, build_student, load_for_finetuning, profile_models
from kdnlp.files import replace_text

BATCH_SIZES = (1, 32)
LENGTH = 128
DTYPE = torch.float32
SECONDS = 240.0


def measure_latency(
    depths: Iterable[int], results: Results, place: Place, model: str
) -> dict[str, Any]:
    """Profile the whole model and a student of each number of blocks.

    In float32, as students are saved, whatever they were trained in. Writes `latency.json` beside
    the results of that training. The machine has to be idle.

    Args:
        depths: of the students, in blocks.
        results: where the file goes.
        place: the device; its `model` is taken where there is one.
        model: the encoder's name on the Hub.
    """
    whole, _ = load_for_finetuning(place.model or model, GLUE_TASKS["mrpc"])
    all_blocks = whole.config.num_hidden_layers
    models = {str(all_blocks): whole}
    for blocks in sorted(set(depths) - {all_blocks}, reverse=True):
        models[str(blocks)] = build_student(whole, blocks)
    profile = profile_models(
        models, BATCH_SIZES, (LENGTH,), place.device, DTYPE, max_seconds=SECONDS
    )
    measured = {
        "length": LENGTH,
        "dtype": str(DTYPE).removeprefix("torch."),
        "machine": describe_machine(replace(place, threads=torch.get_num_threads())),
        "depths": {
            model.name: [
                {
                    "batch_size": cell.latency.batch_size,
                    "median_ms": cell.latency.p50_ms,
                    "speedup": cell.speedup.ratio if cell.speedup else 1.0,
                    "low": cell.speedup.low if cell.speedup else 1.0,
                    "high": cell.speedup.high if cell.speedup else 1.0,
                    "flops_ratio": first.flops_per_example / cell.flops_per_example,
                }
                for first, cell in zip(profile.reference.cells, model.cells, strict=True)
            ]
            for model in profile.models
        },
    }
    results.folder.mkdir(parents=True, exist_ok=True)
    replace_text(results.folder / "latency.json", json.dumps(measured, indent=1) + "\n")
    return measured
