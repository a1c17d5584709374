"""A page for every loss of `LOSSES`: what, when, values and source, from what it says of itself."""

import re
from typing import Any

from docs_insertions import default, docstring_text, one_line, package, table

from kdnlp import losses
from kdnlp.losses import LOSSES
from kdnlp.losses.base import DistillationLoss
from kdnlp.losses.overview import cite, losses_markdown

_UNITS = {"rows": "examples", "items": "predictions that count", "tokens": "attended tokens"}

_FUNCTIONS = [name for name in losses.__all__ if name.islower()]
"""The losses as pure functions."""

_INDEX = """# Losses

On the command line `--losses logits,patient`, in Python `losses={{"logits": LogitsLoss()}}`; weigh
them by `loss_weights`. [Distillation](../distillation.md) says which of them gained something on
real data.

{overview}

## Layer maps

Losses that compare several layers take a `layer_map` from the student's layers to the teacher's.

{layer_maps}

## Pooling

Losses that relate examples to each other take one vector an example out of a layer, by `pooling`:
{pooling}
"""

_PAGE = """# {name}

{idea}

{facts}

## What it computes

{formulas}

## When

{when}

## Values

{values}

## Use

```sh
kdnlp distill --task mrpc --teacher out/mrpc --num_layers 6 \\
    --losses {flag} --output_dir out/mrpc-{name}
```

The same in Python, for `DistillationTrainer(student, teacher, args, losses=losses, ...)`, or beside
module replacement for `TheseusTrainer(successor, predecessor, args, losses=losses, ...)`:

```python
from kdnlp import {imports}

losses = {{{python}}}
```

## Source

{source}

```bibtex
{citation}
```
"""


def loss_pages() -> dict[str, str]:
    """Markdown by path below docs/: a page a loss, and the list of all."""
    overview = losses_markdown()
    for name in LOSSES:
        overview = overview.replace(f"| `{name}` |", f"| [`{name}`]({name}.md) |")
    maps = docstring_text("losses.layer_map.resolve_layer_map").partition("\n\n")[2]
    pooling = _texts(package()["losses.pooling.EmbeddingLoss"])["pooling"]
    index = _INDEX.format(overview=overview, layer_maps=maps, pooling=pooling)
    return {"methods/losses/index.md": index} | {
        f"methods/losses/{name}.md": loss_page(name) for name in LOSSES
    }


def loss_page(name: str) -> str:
    """The page of one loss."""
    loss = LOSSES[name]
    text, _, source = docstring_text(f"losses.{loss.__name__}").partition("\n\nSource: ")
    idea, _, when = text.partition("\n\n")
    others = [] if name == "logits" else [("logits", "LogitsLoss")]
    both = [*others, (name, loss.__name__)]
    return _PAGE.format(
        name=name,
        idea=idea,
        facts=table(("class", f"[`{loss.__name__}`][kdnlp.{loss.__name__}]"), _facts(name, loss)),
        formulas=_formulas(loss, text),
        when=when,
        values=_values(loss),
        flag=",".join(key for key, _ in both),
        imports=", ".join(sorted(class_name for _, class_name in both)),
        python=", ".join(f'"{key}": {class_name}()' for key, class_name in both),
        source=source[0].upper() + source[1:],
        citation=loss.citation,
    )


def _facts(name: str, loss: type[DistillationLoss]) -> list[tuple[str, str]]:
    reads = ", ".join(f"`{field}`" for field in sorted(loss().needs))
    return [
        ("paper", cite(loss.citation)),
        ("reads", reads if loss.needs_teacher else f"{reads} of the student; needs no teacher"),
        ("a mean over", _UNITS[loss.unit]),
        ("tasks", _tasks(name)),
    ]


def _tasks(name: str) -> str:
    """As the README's table has them."""
    row = next(row for row in losses_markdown().splitlines() if row.startswith(f"| `{name}` |"))
    return row.strip("| ").rpartition("|")[2].strip()


def _formulas(loss: type[DistillationLoss], text: str) -> str:
    """The first paragraph of each function that the docstring names, else of the module's own."""
    functions = {name: package()["losses"][name] for name in _FUNCTIONS}
    named = [name for name in re.findall(r"`(\w+)`", text) if name in functions]
    own = [n for n, f in functions.items() if f.canonical_path == f"{loss.__module__}.{n}"]
    names = dict.fromkeys(named or own)
    return "\n".join(f"- `{name}`: {_first(functions[name])}" for name in names)


def _first(function: Any) -> str:
    return " ".join(function.docstring.value.split("\n\n")[0].split())


def _values(loss: type[DistillationLoss]) -> str:
    """The parameters that the constructor takes, as the class or one above it describes them."""
    described = package()["losses"][loss.__name__].final_target
    texts = {k: v for above in reversed(described.mro()) for k, v in _texts(above).items()}
    texts |= _texts(described)
    constructor = described.all_members.get("__init__")
    own = [p for p in constructor.parameters if p.name != "self"] if constructor else []
    if not own:
        return "None of its own."
    rows = [(f"`{p.name}`", default(p.default), texts[p.name]) for p in own]
    return table(("name", "default", "meaning"), rows)


def _texts(described: Any) -> dict[str, str]:
    """What a class's docstring says of each parameter."""
    sections = described.docstring.parse("google")
    found = [section.value for section in sections if section.kind.value == "parameters"]
    return {value.name: one_line(value.description) for values in found for value in values}
