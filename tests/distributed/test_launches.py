"""`accelerate launch` with the shipped configurations, on CPUs: two processes, and two machines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.utils.distributed import get_free_port

from kdnlp.evaluation.report import CompressionReport

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(600)]
CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


def start(config, folder, *flags):
    """Start Theseus on a built-in task under `accelerate launch`, without waiting for it."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", str(CONFIGS / config), "--mixed_precision=no",
        "--num_cpu_threads_per_process=1", *flags,
        "-m", "kdnlp", "theseus", "--task", "synthetic_sentiment", "--max_train_samples", "64",
        "--predecessor", str(folder / "model"), "--no_baseline", "--report_seconds", "0.5",
        "--output_dir", str(folder / "out"), "--max_steps", "4", "--disable_tqdm", "true",
        "--use_cpu",
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


@pytest.fixture
def folder(tmp_path):
    from transformers import BertForSequenceClassification

    from kdnlp.data.synthetic import build_config, build_tokenizer

    config = build_config(2, hidden_size=16, num_heads=2, intermediate_size=24)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def finish(*processes):
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-4000:]


def test_two_processes_start_from_the_configuration_for_cpus(folder):
    finish(start("cpu.yaml", folder, "--main_process_port=0"))
    assert CompressionReport.load(folder / "out").run["processes"] == 2


def test_two_machines_are_two_launches_that_meet(folder):
    meet = ("--num_processes=2", f"--main_process_port={get_free_port()}")
    finish(*(start("multi_node.yaml", folder, *meet, f"--machine_rank={rank}") for rank in (0, 1)))
    assert CompressionReport.load(folder / "out").run["processes"] == 2
