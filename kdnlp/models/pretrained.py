"""Models from the Hub or a folder, checked against the task that they are meant for."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kdnlp.data.preparation import KINDS
from kdnlp.data.task import Task
from kdnlp.loading import load_config, load_model, load_tokenizer
from kdnlp.models.alignment import has_generic_labels, label_names
from kdnlp.models.ensemble import Average, TeacherEnsemble, Weights

logger = logging.getLogger(__name__)

_NEXT_STEP = (
    "Fine-tune it on the task first, and pass the folder that this writes: kdnlp finetune "
    "--model {name} --task {task} --output_dir ..."
)


def load_finetuned(
    name_or_path: str | os.PathLike[str], task: Task, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model that was fine-tuned on the task, and its tokenizer.

    A teacher only answers, and may be larger than memory holds in float32. `dtype=torch.bfloat16`
    halves it, `quantization_config=BitsAndBytesConfig(load_in_8bit=True)` quarters it (the package
    bitsandbytes must be installed), and `device_map="auto"` spreads it over devices. What it
    answers is compared in float32 all the same. A model that is to be trained stays in float32.

    Args:
        name_or_path: a Hub id or a folder.
        task: what it must have been fine-tuned on. Its labels are matched by name, ignoring case;
            their order is the model's own, see `in_model_order`.
        **kwargs: for `from_pretrained`, such as `revision`, or those above. The `dtype` is float32
            unless given: in half precision most updates are smaller than the rounding of the
            weights. Python code that comes with the model runs only with `trust_remote_code=True`.

    Returns:
        The model, in eval mode, and the tokenizer.

    Raises:
        ValueError: if it has no trained head for this kind of task, other labels than the task, or
            needs code of its own that is not trusted.
        OSError: if it is not there, or its weights are not in safetensors.
    """
    name = os.fspath(name_or_path)
    config = check_finetuned(name, task, **kwargs)
    model, loading = load_model(_auto_class(task), name, **{"dtype": torch.float32, **kwargs})
    untrained = sorted({*loading["missing_keys"], *(k[0] for k in loading["mismatched_keys"])})
    if untrained:
        raise ValueError(
            f"{name} is not fine-tuned on {task.name}: its weights lack "
            f"{', '.join(untrained[:4])}, which would start at random and be taken for what the "
            f"model has learned. {_NEXT_STEP.format(name=name, task=task.name)}"
        )
    if task.label_names is not None and has_generic_labels(config):
        logger.warning(
            "%s does not name its labels; taking them to be in the task's order: %s. A score "
            "near or below chance means that they are not.",
            name,
            ", ".join(task.label_names),
        )
    return model.eval(), _matching_tokenizer(name, model, kwargs)


def check_finetuned(name: str, task: Task, **kwargs: Any) -> PretrainedConfig:
    """The configuration of a model, which says that it is one for the task; weights are not read.

    Args:
        name: a Hub id or a folder.
        task: as in `load_finetuned`.
        **kwargs: as in `load_finetuned`.

    Raises:
        ValueError: if it has other labels, or needs code of its own that is not trusted.
        FileNotFoundError: if there is no such model.
    """
    config = load_config(name, **kwargs)
    _check_labels(config, task, name)
    return config


def load_for_finetuning(
    name_or_path: str | os.PathLike[str], task: Task, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained model with a head for the task; a new head starts at random.

    Args:
        name_or_path: a Hub id or a folder. A head for the same number of labels is kept.
        task: gives the number and the names of the labels, and the kind of loss.
        **kwargs: as in `load_finetuned`.

    Returns:
        The model and its tokenizer.

    Raises:
        ValueError: if it needs code of its own that is not trusted.
        OSError: if it is not there, or its weights are not in safetensors.
    """
    name = os.fspath(name_or_path)
    load_config(name, **kwargs)  # which says it if there is no such model
    # A head for another number of labels is replaced; transformers reports what starts fresh.
    model, _ = load_model(
        _auto_class(task),
        name,
        ignore_mismatched_sizes=True,
        **head_config(task),
        **{"dtype": torch.float32, **kwargs},
    )
    return model, _matching_tokenizer(name, model, kwargs)


def load_as_saved(name: str, **kwargs: Any) -> PreTrainedModel:
    """Load a model with the head that its configuration names, whatever it is for.

    Args:
        name: a Hub id or a folder. Where its configuration names no class of transformers, the
            model has no head.
        **kwargs: as in `load_finetuned`.

    Returns:
        The model, in eval mode.

    Raises:
        ValueError: if the weights lack a part of the model, or it needs code of its own that is
            not trusted.
        OSError: if it is not there, or its weights are not in safetensors.
    """
    classes = load_config(name, **kwargs).architectures or ["AutoModel"]
    own_class = getattr(transformers, classes[0], transformers.AutoModel)
    model, found = load_model(own_class, name, **{"dtype": torch.float32, **kwargs})
    if found["missing_keys"]:
        raise ValueError(
            f"The weights of {name} lack {', '.join(sorted(found['missing_keys'])[:4])}, which "
            "would start at random. Fine-tune it first, or name the class that it was saved from "
            "as `architectures` in its config.json."
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_ensemble(
    paths: Sequence[str | os.PathLike[str]],
    task: Task,
    weights: Weights = None,
    metrics: Sequence[float] | None = None,
    average: Average = "probabilities",
    **kwargs: Any,
) -> tuple[TeacherEnsemble, PreTrainedTokenizerBase]:
    """Load models that were fine-tuned on one task, with one vocabulary, as one teacher.

    Args:
        paths: Hub ids or folders, at least one.
        task: what all of them must have been fine-tuned on.
        weights: as in `TeacherEnsemble`.
        metrics: as in `TeacherEnsemble`.
        average: as in `TeacherEnsemble`.
        **kwargs: for `load_finetuned`, such as `dtype`.

    Returns:
        The ensemble, in eval mode, and the tokenizer that its members share.

    Raises:
        ValueError: as `load_finetuned` and `TeacherEnsemble`, or if the tokenizers differ.
    """
    loaded = [load_finetuned(path, task, **kwargs) for path in paths]
    for path, (_, tokenizer) in zip(paths, loaded, strict=True):
        if tokenizer.get_vocab() != loaded[0][1].get_vocab():
            raise ValueError(
                f"Expected members with one vocabulary, got another in {os.fspath(path)} than in "
                f"{os.fspath(paths[0])}. The same ids would be other words to it. Load them with "
                "load_finetuned, and give TeacherEnsemble prefixes."
            )
    ensemble = TeacherEnsemble([model for model, _ in loaded], weights, metrics, average)
    return ensemble.eval(), loaded[0][1]


def head_config(task: Task) -> dict[str, Any]:
    """The configuration fields that give a model the task's labels and loss."""
    problem_type = {"problem_type": KINDS[task.kind].problem_type}
    if task.label_names is None:
        return {"num_labels": task.num_labels, **problem_type}
    return {
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {name: number for number, name in enumerate(task.label_names)},
        **problem_type,
    }


def in_model_order(task: Task, config: PretrainedConfig) -> Task:
    """The task with its label names in the order of the model's ids.

    A model that was fine-tuned elsewhere may number the classes in its own way
    (`roberta-large-mnli` counts from contradiction). Data prepared for the returned task has the
    model's ids; `build_compute_metrics` must be given it too.
    """
    theirs = label_names(config)
    if task.label_names is None or has_generic_labels(config):
        return task
    by_name = {name.lower(): name for name in task.label_names}
    ordered = tuple(by_name[name] for name in theirs)
    return task if ordered == task.label_names else task.with_label_order(ordered)


def _auto_class(task: Task) -> Any:
    return getattr(transformers, KINDS[task.kind].auto_class)


def _matching_tokenizer(
    name: str, model: PreTrainedModel, kwargs: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """The tokenizer; without a pad token it pads with end-of-sequence, and the model knows."""
    tokenizer = load_tokenizer(name, **kwargs)
    if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _check_labels(config: PretrainedConfig, task: Task, name: str) -> None:
    theirs, problem = label_names(config), getattr(config, "problem_type", None)
    if len(theirs) != task.num_labels:
        raise _other_labels(theirs, task, name)
    if problem not in (None, KINDS[task.kind].problem_type):
        raise ValueError(
            f"{name} is not fine-tuned on {task.name}: expected a model for {task.kind}, got one "
            f"for {problem}. Its logits mean something else. "
            f"{_NEXT_STEP.format(name=name, task=task.name)}"
        )
    if task.label_names is None:
        return
    expected = sorted(label.lower() for label in task.label_names)
    if not has_generic_labels(config) and sorted(theirs) != expected:
        raise _other_labels(theirs, task, name)


def _other_labels(theirs: list[str], task: Task, name: str) -> ValueError:
    unnamed = {"regression": "one number (regression)", "question_answering": "start and end"}
    return ValueError(
        f"{name} is not fine-tuned on {task.name}: expected the labels "
        f"{unnamed.get(task.kind, task.label_names)}, got "
        f"{len(theirs)}: {', '.join(theirs)}. Its answers mean something else than the task's "
        f"labels. {_NEXT_STEP.format(name=name, task=task.name)}"
    )
