"""The students of a ladder on disk: where each lies, what decides it, and how far it has come."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel
from transformers.trainer_utils import SchedulerType

from kdnlp.arguments import DistillationTrainingArguments
from kdnlp.arguments.paths import check_below
from kdnlp.cli.loss_settings import resolve_losses
from kdnlp.cli.options import DataOptions, LadderOptions
from kdnlp.evaluation.report import REPORT_JSON
from kdnlp.files import replace_text
from kdnlp.models.cache import combine, fingerprint_model, fingerprint_rows
from kdnlp.trainers.output_dir import check_output_dir, remove_checkpoints

RUNG_JSON = "_rung.json"
"""In a student's folder; a name that starts with an underscore is left out of what goes to the Hub.

It is there from before the first step, with the settings, and says `"done": true` last of all.
"""

_DECIDES_NOTHING = (
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "push_to_hub", "hub_"),
    *("log", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "debug"),
    *("include_num_input_tokens_seen", "skip_memory_metrics", "torch_empty_cache_steps"),
    *("per_device_eval_batch_size", "do_", "enable_jit_checkpoint"),
    *("dataloader_num_workers", "dataloader_p", "dataloader_multiprocessing_context"),
    *("local_rank", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb"),
    *("teacher_cache_dir", "teacher_cache_limit_gb"),
)
"""How the names of such arguments begin."""

_DECIDES_BY_EVALUATION = ("eval_", "save_")
"""The same of what counts only where evaluations choose a checkpoint or the learning rate."""

_DATA_FILES = ("data_dir", "train_file", "validation_file")


@dataclass(frozen=True)
class Rung:
    """One student of a ladder, as its folder was found before any of them was trained.

    Attributes:
        depth: its blocks.
        args: the training arguments, with a folder and a Hub name of its own.
        checkpoint: where it was killed; `None` to begin at the beginning.
        done: whether it is trained, measured and published.
    """

    depth: int
    args: DistillationTrainingArguments
    checkpoint: str | None
    done: bool

    @property
    def name(self) -> str:
        """What the ladder's report calls it."""
        return f"{self.depth} layer{'s' * (self.depth > 1)}"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return Path(str(self.args.output_dir))


def find_rung(depth: int, args: DistillationTrainingArguments, settings: dict[str, Any]) -> Rung:
    """Look at what is left of a student of that depth.

    Raises:
        ValueError: if the folder holds another run, or a student that was made otherwise.
    """
    own = _own_arguments(args, depth)
    folder = Path(str(own.output_dir))
    if args.overwrite_output_dir:
        return Rung(depth, own, None, done=False)
    if not (folder / RUNG_JSON).is_file():
        check_output_dir(str(folder))
        return Rung(depth, own, None, done=False)
    state = json.loads((folder / RUNG_JSON).read_text(encoding="utf-8"))
    _check_settings(folder, state["settings"], settings)
    if state["done"] and (folder / REPORT_JSON).is_file():
        return Rung(depth, own, None, done=True)
    own.resume_from_checkpoint = args.newest_checkpoint_wish()
    checkpoint = own.checkpoint_to_resume()
    # What was killed before its first checkpoint, or keeps none, may have left a model already.
    own.overwrite_output_dir = checkpoint is None
    return Rung(depth, own, checkpoint, done=False)


def begin_rung(rung: Rung, settings: dict[str, Any]) -> None:
    """Note, before a student is trained, with what settings: it may be resumed with no others."""
    if rung.args.process_index == 0:
        rung.folder.mkdir(parents=True, exist_ok=True)
        if rung.checkpoint is None:
            # Before the note: those of an overwritten student must not be taken for this one's.
            remove_checkpoints(str(rung.folder))
        _write_state(rung, settings, done=False)


def finish_rung(rung: Rung, settings: dict[str, Any]) -> None:
    """Note, after all else, that a student is done."""
    if rung.args.process_index == 0:
        _write_state(rung, settings, done=True)


def ladder_settings(
    options: LadderOptions,
    data: DataOptions,
    args: DistillationTrainingArguments,
    teacher: PreTrainedModel,
    splits: Mapping[str, Dataset],
) -> dict[str, Any]:
    """Everything that decides what a student learns and scores, as plain values.

    Where teacher, data and cache lie does not count; what is in the first two does.
    """
    losses = resolve_losses(options.losses)
    values = {k: v for k, v in args.to_dict().items() if _decides(k, args)}
    values |= {k: v for k, v in asdict(data).items() if k not in _DATA_FILES}
    values |= {
        "teacher": fingerprint_model(teacher),
        "teacher_dtype": options.teacher_dtype,
        "rows": combine(*(f"{k} {fingerprint_rows(splits[k])}" for k in sorted(splits))),
        "losses": None if losses is None else {k: loss.config() for k, loss in losses.items()},
        "init_layers": options.init_layers,
        "processes": args.world_size,
    }
    return dict(json.loads(json.dumps(values, default=str)))


def _decides(name: str, args: DistillationTrainingArguments) -> bool:
    plateau = args.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    if name.startswith(_DECIDES_BY_EVALUATION):
        return bool(args.load_best_model_at_end or plateau)
    return not name.startswith(_DECIDES_NOTHING)


def _check_settings(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if changed:
        raise ValueError(
            f"{folder} holds a student that was made with other settings ({', '.join(changed)}). "
            "One report over both would compare what cannot be compared. Choose another "
            "--output_dir, or pass --overwrite_output_dir to make all students anew."
        )


def _write_state(rung: Rung, settings: dict[str, Any], done: bool) -> None:
    text = json.dumps({"done": done, "settings": settings}, indent=2)
    replace_text(rung.folder / RUNG_JSON, f"{text}\n")


def _own_arguments(
    args: DistillationTrainingArguments, depth: int
) -> DistillationTrainingArguments:
    own = copy.deepcopy(args)
    own.hub_token = args.hub_token  # a copy is made without it
    own.output_dir = str(Path(str(args.output_dir), f"{depth}-layers"))
    check_below(str(args.output_dir), own.output_dir, "The student's folder")
    own.resume_from_checkpoint = None
    if args.push_to_hub:
        name = args.hub_model_id or Path(str(args.output_dir)).name
        own.hub_model_id = f"{name}-{depth}-layers"
    return own
