"""What `kdnlp.compression.gate` runs in a process of its own, where kdnlp cannot be imported.

It reads a job as JSON from standard input, its last line of output is JSON, and the logits, which
may be many, are in the file of arrays that the job names.
"""

import json
import sys
from typing import Any


def main() -> None:
    """Load the folder of the job, answer its batch, and say what was found."""
    job = json.load(sys.stdin)
    # A name that is `None` here cannot be imported, nor anything below it.
    sys.modules["kdnlp"] = None  # type: ignore[assignment]
    sys.path[:] = [place for place in sys.path if place]
    import numpy

    run = run_graph if job["auto_class"] is None else run_model
    found, logits = run(job)
    numpy.savez(job["answers"], **logits)
    own = [n for n, module in sys.modules.items() if n.startswith("kdnlp") and module is not None]
    print(json.dumps({**found, "kdnlp": own}))


def run_graph(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An ONNX graph: torch is not there."""
    sys.modules["torch"] = None  # type: ignore[assignment]
    import numpy
    import onnxruntime

    session = onnxruntime.InferenceSession(
        f"{job['folder']}/model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_outputs()]
    feed = {
        value.name: numpy.array(job["batch"][value.name], numpy.int64)
        for value in session.get_inputs()
    }
    logits = dict(zip(names, session.run(names, feed), strict=True))
    return {"class": None, "missing": [], "unexpected": [], **read_probe(job)}, logits


def run_model(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model of transformers."""
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    model, info = getattr(transformers, job["auto_class"]).from_pretrained(
        job["folder"], output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    batch = {name: torch.tensor(value) for name, value in job["batch"].items()}
    with torch.no_grad():
        found = model.eval()(**batch, return_dict=True)
    names = [name for name in ("logits", "start_logits", "end_logits") if name in found]
    said = {
        "class": type(model).__name__,
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
    }
    return {**said, **read_probe(job)}, {name: found[name].float().numpy() for name in names}


def read_probe(job: dict[str, Any]) -> dict[str, Any]:
    """What the folder's tokenizer makes of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["folder"], local_files_only=True)
    return {"probe_ids": tokenizer(job["probe"])["input_ids"]}


if __name__ == "__main__":
    main()
