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


def start(config, folder, *flags, own=()):
    """Start Theseus, with flags of its `own`, under `accelerate launch`; it is not waited for."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch",
        "--config_file", str(CONFIGS / config), "--mixed_precision=no",
        "--num_cpu_threads_per_process=1", *flags,
        "-m", "kdnlp", "theseus", "--task", "synthetic_sentiment", "--max_train_samples", "64",
        "--predecessor", str(folder / "model"), "--no_baseline", "--report_seconds", "0.5",
        "--output_dir", str(folder / "out"), "--max_steps", "4",
        "--disable_tqdm", "true", "--use_cpu", *own,
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
    said = [process.communicate(timeout=300)[0] for process in processes]
    ends = [process.returncode for process in processes]
    assert not any(ends), f"{ends}\n" + "\n".join(text[-6000:] for text in said)


def test_two_processes_start_from_the_configuration_for_cpus(folder):
    finish(start("cpu.yaml", folder, "--main_process_port=0"))
    assert CompressionReport.load(folder / "out").run["processes"] == 2


def test_two_machines_are_two_launches_that_meet(folder):
    meet = ("--num_processes=2", f"--main_process_port={get_free_port()}")
    finish(*(start("multi_node.yaml", folder, *meet, f"--machine_rank={rank}") for rank in (0, 1)))
    assert CompressionReport.load(folder / "out").run["processes"] == 2


def test_two_machines_with_a_disk_each_are_refused(folder):
    """Transformers writes the weights on the first process alone: nothing could be resumed."""
    meet = ("--num_processes=2", f"--main_process_port={get_free_port()}")
    own = ("--save_on_each_node=true",)
    runs = [
        start("multi_node.yaml", folder, *meet, f"--machine_rank={rank}", own=own)
        for rank in (0, 1)
    ]
    for run in runs:
        said, _ = run.communicate(timeout=300)
        assert run.returncode != 0
        assert "output_dir on a disk that all nodes share" in said, said[-4000:]
