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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_measured_exported_reported_pushed_and_loaded_back(hub, elsewhere, tmp_path):
    config = build_config(4, hidden_size=16, num_heads=2, intermediate_size=24)
    model, original, run = (tmp_path / name for name in ("model", "original", "run"))
    BertForSequenceClassification(config).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    main(["finetune", *TASK, *SHORT, "--model", str(model), "--output_dir", str(original)])
    made = ("--predecessor", str(original), "--output_dir", str(run), "--report_seconds", "2")
    main(["theseus", *TASK, *SHORT, *made])

    path = f"{Path(sys.executable).parent}{os.pathsep}{elsewhere['PATH']}"
    command = [str(SCRIPT), str(original), str(run), "small", "mit", *TASK]
    done = subprocess.run(
        command,
        env={**elsewhere, "PATH": path, "LENGTH": "32"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]

    assert "What came from the Hub is what was sent" in done.stdout

    sent = hub.names("me/small")
    pictures = {"report.png", "report.svg", "training.png", "module_time.png"}
    assert {
        "model.safetensors",
        "README.md",
        "report.html",
        "onnx/model.onnx",
        "onnx/export.json",
    } | pictures <= sent
    assert not [name for name in sent if name.endswith((".pt", ".bin")) or name.startswith("_")]
    for folder, file in (
        ("run-profile", "profile.json"), ("run-onnx-int8", "model.onnx"),
        ("run-report", "comparison.html"), ("run-from-hub", "model.safetensors"),
    ):  # fmt: skip
        assert (tmp_path / folder / file).is_file(), folder


KDNLP = """#!/usr/bin/env bash
set -eu
echo "$@" >> "$ASKED"
if [ "$1" = push ]; then printf 'https://a.hub/me/small\nrepo_id me/small\ncommit abc\n'; fi
if [ "$1" != export ]; then exit; fi
digest=sent score=0.8
if [ "$2" = me/small ]; then digest=$DIGEST score=$SCORE; fi
while [ "$1" != --output_dir ]; do shift; done
mkdir -p "$2"
facts='{"source_digest": "%s", "metrics": {"original": {"validation": {"accuracy": %s}}}}'
printf "$facts" "$digest" "$score" > "$2/export.json"
"""
"""Stands for the command: what comes from the Hub has the digest and the score that are set."""


@pytest.mark.parametrize(
    ("digest", "score", "said"),
    [
        ("sent", "0.8", "the same weights, the same scores"),
        ("other", "0.8", "The weights from the Hub, other, are not those that were sent, sent."),
        ("sent", "0.7", "The scores from the Hub"),
    ],
)
def test_another_model_that_comes_back_ends_the_script_in_an_error(tmp_path, digest, score, said):
    command, asked = tmp_path / "bin" / "kdnlp", tmp_path / "asked"
    command.parent.mkdir()
    command.write_text(KDNLP)
    command.chmod(0o755)
    folders = (str(command.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    told = {"ASKED": str(asked), "DIGEST": digest, "SCORE": score, "PATH": os.pathsep.join(folders)}
    run = str(tmp_path / "run")
    done = subprocess.run(
        [str(SCRIPT), "original", run, "small", "mit", "--task", "mrpc"],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said in done.stdout + done.stderr
    assert (done.returncode == 0) == ((digest, score) == ("sent", "0.8"))
    assert "export me/small --revision abc" in asked.read_text()
