"""What the blocks name and no test may fetch: tiny, in folders of the same relative names.

Transformers and datasets take a folder for a name of the Hub, so that no block is changed:

- `google-bert/bert-base-uncased`: a BERT of twelve blocks, 16 wide, with random weights;
- `nyu-mll/glue`: the tasks `mrpc`, `rte` and `sst2` with generated rows;
- `out/mrpc`: the first, fine-tuned for three steps, as `out/mrpc-second` and `out/mrpc-third` are;
- `out/mrpc-theseus`: what `kdnlp theseus` makes of it, on pages that begin with it;
- `recipes`: the repository's own.
"""

import shutil
from functools import partial

import datasets
import torch
from code_blocks import ROOT
from transformers import BertModel

from kdnlp.cli import main
from kdnlp.data.glue import GLUE_TASKS
from kdnlp.data.synthetic import build_config, build_tokenizer, generate
from kdnlp.evaluation import plots
from kdnlp.profiling.latency import measure_latency

ENCODER = "google-bert/bert-base-uncased"
GLUE = "nyu-mll/glue"
TASKS = {
    "mrpc": "synthetic_paraphrase",
    "rte": "synthetic_paraphrase",
    "sst2": "synthetic_sentiment",
}
MRPC = ("--task", "mrpc")
ROWS = {"train": 16, "validation": 8}

_CONFIG = """- config_name: {task}
  data_files:
  - split: train
    path: {task}/train.parquet
  - split: validation
    path: {task}/validation.parquet
"""


def save_encoder(folder):
    """The encoder and its tokenizer."""
    torch.manual_seed(0)
    config = build_config(12, hidden_size=16, num_heads=2, intermediate_size=24)
    config.max_position_embeddings = 512
    BertModel(config).save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)


def save_glue(folder):
    """The tasks in the Hub's layout, with the card that names their files."""
    for task, generated in TASKS.items():
        rows = generate(generated, num_train=ROWS["train"], num_validation=ROWS["validation"])
        labels = datasets.ClassLabel(names=[*GLUE_TASKS[task].label_names])
        for split, part in rows.cast_column("label", labels).items():
            (folder / task).mkdir(parents=True, exist_ok=True)
            part.to_parquet(folder / task / f"{split}.parquet")
    configs = "".join(_CONFIG.format(task=task) for task in TASKS)
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n", encoding="utf-8")


def save_all(folder, flags):
    """Everything but the last; the process must be in `folder`.

    Args:
        folder: an empty one.
        flags: what shortens the training.
    """
    save_encoder(folder / ENCODER)
    save_glue(folder / GLUE)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    main(["finetune", *MRPC, "--model", ENCODER, "--output_dir", "out/mrpc", *flags])
    for copy in ("second", "third"):
        shutil.copytree("out/mrpc", f"out/mrpc-{copy}")


def save_successor(flags):
    """The last, where the others are; the process must be there."""
    smaller = ("--predecessor", "out/mrpc", "--output_dir", "out/mrpc-theseus")
    main(["theseus", *MRPC, *smaller, "--no_baseline", *flags])


def be_brief(patch, cache):
    """Draw nothing, measure three rounds, and keep tables in a folder of the test."""
    rounds = partial(measure_latency, num_warmup=1, num_repeats=3)
    patch.setattr("kdnlp.evaluation.report.measure_latency", rounds)
    patch.setattr(plots, "save_plots", lambda report, folder: None)
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
