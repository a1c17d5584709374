"""The grid as its YAML file says it: which cells there are, and everything that decides a cell."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

TEACHER = "teacher"
"""The method of the cells that fine-tune the whole pretrained model."""

_TRAINERS = ("plain", "distillation", "theseus")
_STAGE = {"trainer", "losses", "arguments"}
_EXTRAS = ("trained_blocks", "copies", "ensemble")
_SPEC = _STAGE | {"title", "init_layers", "by_blocks", "stages", "budget", "ablation", *_EXTRAS}


@dataclass(frozen=True)
class Cell:
    """One training: a task, a method, a number of blocks, a learning rate and a seed.

    Attributes:
        task: a GLUE task.
        method: a name under `methods` in the grid, or `TEACHER`.
        blocks: of the model that is trained; 0 for a teacher, which keeps all.
        learning_rate: the peak.
        seed: of batches, dropout and replacements; a teacher's also of its head.
        settings: what else decides the result, as plain values.
    """

    task: str
    method: str
    blocks: int
    learning_rate: float
    seed: int
    settings: dict[str, Any] = field(hash=False)

    @property
    def path(self) -> Path:
        """Where its result lies, below the folder of results."""
        name = f"lr{self.learning_rate:.0e}-seed{self.seed}.json"
        depth = TEACHER if self.method == TEACHER else f"{self.blocks}-blocks/{self.method}"
        return Path(self.task, depth, name)

    def described(self) -> dict[str, Any]:
        """Itself as JSON gives it back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass(frozen=True)
class Grid:
    """The YAML file, checked.

    Raises:
        ValueError: if it names a method, task or key that there is not.
    """

    model: str
    holdout: float
    arguments: dict[str, Any]
    tasks: dict[str, dict[str, float]]
    teacher: dict[str, Any]
    student: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    plan: list[dict[str, list[Any]]]

    def __post_init__(self) -> None:
        """Refuse what would be skipped in silence, or fail after hours."""
        for name, spec in self.methods.items():
            _check_names(f"method {name}", spec, _SPEC)
            for stage in spec.get("stages", ()):
                _check_names(f"a stage of {name}", stage, _STAGE | {"share", "restart"})
            for part in spec.get("stages", [spec]):
                if part.get("trainer", "plain") not in _TRAINERS:
                    raise ValueError(
                        f"Method {name}: expected a trainer out of {', '.join(_TRAINERS)}, got "
                        f"{part['trainer']!r}."
                    )
        for part in self.plan:
            _check_names("plan", part, {"tasks", "methods", "blocks", "seeds"})
            _check_names("plan's tasks", part["tasks"], set(self.tasks))
            _check_names("plan's methods", part["methods"], set(self.methods))

    @classmethod
    def read(cls, path: Path) -> "Grid":
        """The grid of a YAML file."""
        return cls(**yaml.safe_load(path.read_text(encoding="utf-8")))

    def teachers(self, task: str) -> list[Cell]:
        """The cells out of which the task's teacher is chosen."""
        settings = {
            "holdout": self.holdout,
            "model": self.model,
            "init_layers": None,
            "stages": [
                {
                    "trainer": "plain",
                    "epochs": self.tasks[task]["teacher_epochs"],
                    "losses": None,
                    "arguments": self.arguments,
                }
            ],
        }
        seed, rates = self.teacher["seed"], self.teacher["learning_rates"]
        return [Cell(task, TEACHER, 0, rate, seed, settings) for rate in rates]

    def students(self, task: str, method: str, blocks: int, seed: int) -> list[Cell]:
        """The cells of one seed: one for each learning rate that is tried."""
        settings = self._settings(task, method, blocks)
        rates = self.student["learning_rates"]
        return [Cell(task, method, blocks, rate, seed, settings) for rate in rates]

    def rows(self) -> Iterator[tuple[str, str, int, Sequence[int]]]:
        """Task, method, blocks and seeds of every row that the plan asks for, in its order."""
        for part in self.plan:
            for blocks in part["blocks"]:
                for method in part["methods"]:
                    for task in part["tasks"]:
                        yield task, method, blocks, part["seeds"]

    def _settings(self, task: str, method: str, blocks: int) -> dict[str, Any]:
        spec = self.methods[method]
        own = spec.get("by_blocks", {}).get(blocks, {})
        epochs = self.tasks[task]["epochs"] * spec.get("budget", 1)
        slots = {k: v for k, v in own.items() if k != "init_layers"}
        return {
            "holdout": self.holdout,
            "model": self.model,
            "init_layers": own.get("init_layers", spec.get("init_layers", "first")),
            **{name: spec[name] for name in _EXTRAS if name in spec},
            "stages": [
                {
                    "trainer": stage.get("trainer", "plain"),
                    "epochs": epochs * stage.get("share", 1),
                    "losses": stage.get("losses"),
                    "arguments": {**self.arguments, **stage.get("arguments", {}), **slots},
                    **({"restart": True} if stage.get("restart") else {}),
                }
                for stage in spec.get("stages", [spec])
            ],
        }


def _check_names(where: str, given: Any, known: set[str]) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"The grid's {where}: expected names out of {sorted(known)}, got {unknown}."
        )
