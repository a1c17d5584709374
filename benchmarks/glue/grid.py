"""The grid as its YAML file says it: which cells there are, and everything that decides a cell.

A study is a plan over the same methods; its results are compared with each other alone, and lie in
a folder of their own.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from kdnlp import LOSSES, CompressionTrainer, DistillationTrainer, TheseusTrainer

TEACHER = "teacher"
"""The method of the cells that fine-tune the whole pretrained model."""

BASELINE = "baseline"
"""The method that the others are compared with, unless they name another one."""

NAMES = {"rte": "RTE", "mrpc": "MRPC", "stsb": "STS-B", "cola": "CoLA", "sst2": "SST-2"}
"""The tasks, and what tables call them."""

PLAIN = "plain"

TRAINERS: dict[str, type[CompressionTrainer]] = {
    PLAIN: CompressionTrainer,
    "distillation": DistillationTrainer,
    "theseus": TheseusTrainer,
}

_EXTRAS = ("trained_blocks", "copies", "ensemble")
_STAGE = {"trainer", "losses", "arguments"}
_ROW = {"title", "budget", "learning_rates", "against", "ablation"}
_SPEC = _STAGE | _ROW | {"init_layers", "by_blocks", "stages"}


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
        name = f"lr{self.learning_rate:g}-seed{self.seed}.json"
        depth = TEACHER if self.method == TEACHER else f"{self.blocks}-blocks/{self.method}"
        return Path(self.task, depth, name)

    def described(self) -> dict[str, Any]:
        """Itself as JSON gives it back."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass(frozen=True)
class Grid:
    """A study of the YAML file, checked: what would be skipped, or fail after hours, is refused.

    Attributes:
        name: the study's.
        model: the pretrained encoder's name on the Hub.
        holdout: the share of a train split that selects.
        arguments: what all trainings have in common.
        tasks: by GLUE's name, the epochs of a student and of its teacher.
        averaged: the tasks whose mean a table shows.
        teacher: the learning rates that are tried, and the seed.
        student: the learning rates that are tried, unless a method has `learning_rates` of its own.
        methods: what trains a student.
        setting: the device and precision whose results of this study the READMEs show.
        plan: which rows are run, in this order.

    Raises:
        ValueError: if it names something that there is not, or that its trainer would not read.
    """

    name: str
    model: str
    holdout: float
    arguments: dict[str, Any]
    tasks: dict[str, dict[str, float]]
    averaged: list[str]
    teacher: dict[str, Any]
    student: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    setting: str
    plan: list[dict[str, list[Any]]]

    def __post_init__(self) -> None:
        """Check every name."""
        _check_names("tasks", self.tasks, NAMES)
        _check_names("averaged tasks", self.averaged, self.tasks)
        for name, spec in self.methods.items():
            _check_method(f"method {name}", spec)
            _check_names(f"method {name}'s against", [self.against(name)], self.methods)
        for part in self.plan:
            _check_names("plan", part, {"tasks", "methods", "blocks", "seeds"})
            _check_names("plan's tasks", part["tasks"], self.tasks)
            _check_names("plan's methods", part["methods"], self.methods)
        for _, method, blocks, _ in self.rows():
            by_blocks = self.methods[method].get("by_blocks", {blocks: {}})
            _check_names(f"plan for {method}, blocks", [blocks], by_blocks)

    @classmethod
    def read(cls, path: Path) -> dict[str, "Grid"]:
        """The studies of a YAML file, by name."""
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        own = {"setting", "plan"}
        _check_all("file", values, {f.name for f in fields(cls)} - own - {"name"} | {"studies"})
        studies, tasks = values.pop("studies"), values.pop("tasks")
        grids = {}
        for name, study in studies.items():
            changed = study.pop("tasks", {})
            _check_all(f"study {name}, beside tasks", study, own)
            _check_names(f"study {name}, tasks", changed, tasks)
            for task, told in changed.items():
                _check_names(f"study {name}, task {task}", told, tasks[task])
            merged = {task: {**told, **changed.get(task, {})} for task, told in tasks.items()}
            grids[name] = cls(name=name, tasks=merged, **values, **study)
        return grids

    def against(self, method: str) -> str:
        """The fine-tuning, of the same budget or start, that this method is compared with."""
        name: str = self.methods[method].get("against", BASELINE)
        return name

    def teachers(self, task: str) -> list[Cell]:
        """The cells out of which the task's teacher is chosen."""
        stage = {
            "trainer": PLAIN,
            "epochs": self.tasks[task]["teacher_epochs"],
            "losses": None,
            "arguments": self.arguments,
        }
        settings = {
            "holdout": self.holdout,
            "model": self.model,
            "init_layers": None,
            "stages": [stage],
        }
        seed, rates = self.teacher["seed"], self.teacher["learning_rates"]
        return [Cell(task, TEACHER, 0, rate, seed, settings) for rate in rates]

    def students(self, task: str, method: str, blocks: int, seed: int) -> list[Cell]:
        """The cells of one seed: one for each learning rate that is tried."""
        settings = self._settings(task, method, blocks)
        rates = self.methods[method].get("learning_rates", self.student["learning_rates"])
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
                    "trainer": stage.get("trainer", PLAIN),
                    "epochs": epochs * stage.get("share", 1),
                    "losses": stage.get("losses"),
                    "arguments": {**self.arguments, **stage.get("arguments", {}), **slots},
                    **({"restart": True} if stage.get("restart") else {}),
                }
                for stage in spec.get("stages", [spec])
            ],
        }


def _check_method(where: str, spec: Mapping[str, Any]) -> None:
    _check_names(where, spec, {*_SPEC, *_EXTRAS})
    stages = spec.get("stages")
    if stages is None:
        _check_stage(where, spec)
        return
    beside = sorted(_STAGE & set(spec))
    if beside:
        raise ValueError(f"The grid's {where}: {beside} beside its stages would not be read.")
    for stage in stages:
        _check_names(f"stage of {where}", stage, _STAGE | {"share", "restart"})
        _check_stage(where, stage)
    shares = sum(stage["share"] for stage in stages)
    if not math.isclose(shares, 1):
        raise ValueError(f"The grid's {where}: expected shares that sum to 1, got {shares:g}.")


def _check_stage(where: str, stage: Mapping[str, Any]) -> None:
    trainer = stage.get("trainer", PLAIN)
    _check_names(f"{where}, trainer", [trainer], TRAINERS)
    known = {f.name for f in fields(TRAINERS[trainer].arguments_class)}
    _check_names(f"{where}, arguments", stage.get("arguments", {}), known)
    _check_names(f"{where}, losses", stage.get("losses", {}), LOSSES)
    if trainer == PLAIN and (stage.get("losses") or stage.get("ensemble")):
        raise ValueError(
            f"The grid's {where}: a plain trainer has no teacher, and its losses or ensemble would "
            "not be read. Name a trainer."
        )


def _check_all(where: str, given: Mapping[str, Any], expected: set[str]) -> None:
    _check_names(where, given, expected)
    missing = sorted(expected - set(given))
    if missing:
        raise ValueError(f"The grid's {where}: {', '.join(missing)} is missing.")


def _check_names(where: str, given: Any, known: Any) -> None:
    unknown = [name for name in given if name not in known]
    if unknown:
        expected = ", ".join(sorted(map(str, known)))
        raise ValueError(f"The grid's {where}: expected names out of {expected}; got {unknown}.")
