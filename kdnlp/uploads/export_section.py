"""What a card says of the graph that lies beside the model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from kdnlp.uploads.card_check import own_id_of
from kdnlp.uploads.publishable import EXPORT_FOLDER
from kdnlp.weights import read_export

_SECTION = re.compile(r"<!-- export -->.*?<!-- /export -->\n*", re.DOTALL)
_NEXT_SECTION = "## Training\n"
"""The heading of a card before which the section stands; without one it is the last."""

_RUN = """```python
import onnxruntime
from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

folder = snapshot_download("{repo_id}", allow_patterns="{export}/*") + "/{export}"
session = onnxruntime.InferenceSession(f"{{folder}}/{graph}")
inputs = AutoTokenizer.from_pretrained(folder)("...", return_tensors="np")
outputs = session.run(None, {{i.name: inputs[i.name] for i in session.get_inputs()}})
```
"""


def with_export(card: ModelCard, folder: Path, files: Iterable[Path]) -> ModelCard:
    """The card with a section about the graph among the files that go along, or without one.

    Args:
        card: one of kdnlp's, which names its repository; another hand's is returned as it is.
        folder: of the model.
        files: that go to the Hub, below it.
    """
    repo_id = own_id_of(card)
    if repo_id is None:
        return card
    text = _SECTION.sub("", str(card))
    place = folder / EXPORT_FOLDER
    graph = next((path for path in files if path.parent == place and path.suffix == ".onnx"), None)
    if graph is None:
        return ModelCard(text)
    lines = ["<!-- export -->", *_section(read_export(place), graph.name, repo_id)]
    section = "\n".join([*lines, "<!-- /export -->", "", ""])
    before, heading, after = text.partition(_NEXT_SECTION)
    return ModelCard(before + ("" if heading else "\n\n") + section + heading + after)


def equality_words(found: Mapping[str, Any]) -> str:
    """How far the answers of an export lie from the model's, as `Equality.to_dict` has it.

    >>> equality_words(dict(rows=64, largest_difference=1e-6, largest_logit=3.4, agreement=1.0))
    'The logits of 64 rows differ by at most 1e-06, where the largest is 3.4; 100.0% equal answers'
    """
    agreement = found["agreement"]
    same = "" if agreement is None else f"; {agreement:.1%} equal answers"
    return (
        f"The logits of {found['rows']} rows differ by at most {found['largest_difference']:.2g}, "
        f"where the largest is {found['largest_logit']:.2g}{same}"
    )


def _section(facts: Mapping[str, Any], graph: str, repo_id: str) -> Iterator[str]:
    how = "with int8 weights" if facts.get("precision") == "int8" else "in float32"
    checked = f" {equality_words(facts['gate'])}." if "gate" in facts else ""
    yield "## ONNX"
    yield ""
    yield (
        f"`{EXPORT_FOLDER}/{graph}` is this model as a graph for ONNX Runtime, {how}, for any "
        f"batch size and length. It was loaded again and compared with the model.{checked}"
        f"{''.join(_scores(facts.get('metrics', {})))}"
    )
    yield ""
    yield _RUN.format(repo_id=repo_id, export=EXPORT_FOLDER, graph=graph)


def _scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    for split, values in metrics.get("export", {}).items():
        if "score" in values:
            model = metrics["original"][split]["score"]
            yield f" On {split} it scores {values['score']:.1%}, and the model {model:.1%}."
