"""What `kdnlp theseus` leaves is a plain transformers model: kdnlp is not needed to use it."""

import json
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from test_commands import FAST, STEPS, TASK, run, save_encoder
from transformers import AutoConfig, AutoModelForSequenceClassification

from kdnlp.cli import compress, steps
from kdnlp.data.synthetic import generate

SENTENCES = ["the plot was not dull", "nobody said that the ending was funny"]

ELSEWHERE = """
import json, sys
from importlib.abc import MetaPathFinder

class NoKdnlp(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kdnlp":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, NoKdnlp())
sys.modules["kdnlp"] = None
for name in ("kdnlp", "kdnlp.models"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, sentences = sys.argv[1], json.loads(sys.argv[2])
model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
batch = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model.eval()(**batch).logits
print(json.dumps({
    "class": f"{type(model).__module__}.{type(model).__name__}",
    "layers": model.config.num_hidden_layers,
    "blocks": len(model.bert.encoder.layer),
    "missing": sorted(info["missing_keys"]),
    "unexpected": sorted(info["unexpected_keys"]),
    "input_ids": batch["input_ids"].tolist(),
    "logits": logits.tolist(),
    "kdnlp": sorted(n for n, m in sys.modules.items() if n.startswith("kdnlp") and m is not None),
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a short Theseus run, and its trainer as it was when the report was written."""
    root, seen = tmp_path_factory.mktemp("export"), []
    publish = compress.publish_results

    def note(trainer, *arguments, **options):
        seen.append(trainer)
        return publish(trainer, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "generate", partial(generate, num_train=64, num_validation=32))
        patch.setattr(compress, "publish_results", note)
        encoder = save_encoder(root / "encoder")
        model, out = root / "model", root / "theseus"
        run("finetune", "--model", encoder, "--output_dir", model, *TASK, *STEPS)
        flags = ("--save_strategy", "steps", "--save_steps", "2", "--learning_rate", "1e-2")
        only = ("--no_baseline", "--unfreeze_after_replacement", "--losses", "logits")
        run("theseus", "--predecessor", model, "--output_dir", out, *TASK, *FAST, *flags, *only)
    return out, seen[0]


@pytest.fixture(scope="module")
def elsewhere(exported):
    """What a process without kdnlp reads from the folder."""
    folder, _ = exported
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder), json.dumps(SENTENCES)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_successor_loads_where_kdnlp_is_not_installed(elsewhere):
    assert elsewhere["kdnlp"] == []
    assert elsewhere["class"].startswith("transformers.models.bert.")
    assert (elsewhere["layers"], elsewhere["blocks"]) == (2, 2)
    assert (elsewhere["missing"], elsewhere["unexpected"]) == ([], [])


def test_it_gives_exactly_the_logits_that_were_reported(elsewhere, exported):
    _, trainer = exported
    batch = trainer.processing_class(SENTENCES, padding=True, return_tensors="pt")
    assert elsewhere["input_ids"] == batch["input_ids"].tolist()
    with torch.no_grad():
        ours = trainer.student.eval()(**batch).logits
        theirs = trainer.predecessor.eval()(**batch).logits
    assert torch.equal(torch.tensor(elsewhere["logits"]), ours)
    assert not torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("part", ["", "checkpoint-2"], ids=["final", "checkpoint"])
def test_the_files_hold_the_tensors_of_a_plain_model_and_no_others(part, exported):
    folder = exported[0] / part
    config = AutoConfig.from_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_config(config)
    saved = load_file(folder / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == {
        name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()
    }
    assert "kdnlp" not in (folder / "config.json").read_text()
