"""`recipes/publish.sh`: from two finished runs to a page on a Hub and back, by commands alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from kdnlp.cli import main
from kdnlp.data.synthetic import build_config, build_tokenizer

SCRIPT = Path(__file__).parents[2] / "recipes" / "publish.sh"
TASK = ("--task", "synthetic_sentiment", "--max_train_samples", "64", "--max_length", "32")
SHORT = ("--max_steps", "4", "--logging_steps", "1", "--use_cpu", "--disable_tqdm", "true")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_run_is_measured_exported_reported_pushed_and_loaded_back(hub, elsewhere, tmp_path):
    config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
    model, original, run = (tmp_path / name for name in ("model", "original", "run"))
    BertForSequenceClassification(config).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    main(["finetune", *TASK, *SHORT, "--model", str(model), "--output_dir", str(original)])
    made = ("--predecessor", str(original), "--output_dir", str(run), "--report_seconds", "2")
    main(["theseus", *TASK, *SHORT, *made])

    path = f"{Path(sys.executable).parent}{os.pathsep}{elsewhere['PATH']}"
    command = [str(SCRIPT), str(original), str(run), "me/small", "mit", *TASK]
    done = subprocess.run(
        command,
        env={**elsewhere, "PATH": path, "LENGTH": "32"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

    sent = hub.names("me/small")
    pictures = {"report.png", "report.svg", "training.png", "module_time.png"}
    assert {"model.safetensors", "README.md", "report.html", "onnx/model.onnx"} | pictures <= sent
    assert not [name for name in sent if name.endswith((".pt", ".bin")) or name.startswith("_")]
    for folder, file in (
        ("run-profile", "profile.json"), ("run-onnx-int8", "model.onnx"),
        ("run-report", "comparison.html"), ("run-from-hub", "model.safetensors"),
    ):  # fmt: skip
        assert (tmp_path / folder / file).is_file(), folder
