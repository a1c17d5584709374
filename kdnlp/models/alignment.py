"""Does a teacher's output mean the same as the student's? Label names, vocabulary, inputs."""

import inspect
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from kdnlp.data.collation import TEACHER_PREFIX

logger = logging.getLogger(__name__)

GENERIC_LABEL = re.compile(r"LABEL_\d+")


def check_vocabulary(teacher: PretrainedConfig, student: PretrainedConfig) -> None:
    """Raise `ValueError` if teacher and student count different token ids."""
    if teacher.vocab_size != student.vocab_size:
        raise ValueError(
            f"Teacher and student must share a vocabulary: the teacher has {teacher.vocab_size} "
            f"token ids, the student {student.vocab_size}. The same ids would mean other words to "
            "the teacher, whose predictions would be noise. Use a student with the teacher's "
            "tokenizer, such as build_student(teacher, num_layers=...)."
        )


def check_inputs(
    teacher: PreTrainedModel, student: PreTrainedModel, columns: Iterable[str]
) -> None:
    """Raise `ValueError` if the data holds inputs that the teacher reads and the student cannot.

    Or if it lacks those that a member of an ensemble reads.

    Args:
        teacher: the teacher.
        student: the student; columns that its forward does not name are dropped from the batch.
        columns: the columns of the training data.
    """
    columns = set(columns)
    only_teacher = sorted(
        columns & input_names(teacher) - input_names(student) - {"labels", "label"}
    )
    if only_teacher:
        raise ValueError(
            f"The data has {', '.join(only_teacher)}, which {type(teacher).__name__} reads and "
            f"{type(student).__name__} cannot take. The column would be dropped and the teacher "
            "would see other inputs than it was trained on. Use a student that takes it, or, if "
            f"the teacher does not need it, dataset.remove_columns({only_teacher})."
        )
    known = {name.removeprefix(TEACHER_PREFIX) for name in columns}
    missing = sorted(getattr(teacher, "required_columns", set()) - known)
    if known and missing:
        names = ", ".join(TEACHER_PREFIX + name for name in missing)
        raise ValueError(
            f"The data lacks {names}, which members of the teacher read. They would have nothing "
            "to answer. Add them (kdnlp.add_teacher_inputs), or change the ensemble's prefixes."
        )


def input_names(model: PreTrainedModel) -> set[str]:
    """The named arguments of the model's forward; of an ensemble, what its members read."""
    declared = getattr(model, "input_columns", None)
    if declared is not None:
        return set(declared)
    return set(inspect.signature(type(model).forward).parameters) - {"self", "kwargs"}


def split_inputs(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The student's part of a batch and the teacher's own, the latter without its prefix.

    Columns that start with `TEACHER_PREFIX` are the teacher's: its token ids where it has another
    tokenizer, or a text that the student never sees.
    """
    ours = {k: v for k, v in batch.items() if not k.startswith(TEACHER_PREFIX)}
    theirs = {
        k.removeprefix(TEACHER_PREFIX): v for k, v in batch.items() if k.startswith(TEACHER_PREFIX)
    }
    return ours, theirs


def align_labels(teacher: PretrainedConfig, student: PretrainedConfig) -> list[int] | None:
    """The order in which the teacher's logits must be read to be the student's.

    Labels are matched by name, ignoring case. Where one side has only the generic `LABEL_0`,
    `LABEL_1`, ... names, the order is taken as it stands and a warning says so.

    Returns:
        For each of the student's labels the teacher's index, or `None` if the order is the same.

    Raises:
        ValueError: if the numbers or the names of the labels differ.
    """
    theirs, ours = label_names(teacher), label_names(student)
    if len(theirs) != len(ours):
        raise ValueError(
            f"Teacher and student must have the same labels: the teacher has {len(theirs)} "
            f"({', '.join(theirs)}), the student {len(ours)} ({', '.join(ours)}). Fine-tune a "
            "teacher on this task, or give the student the teacher's labels."
        )
    if theirs == ours:
        return None
    if has_generic_labels(teacher) != has_generic_labels(student):
        logger.warning(
            "Only one of teacher and student names its labels; taking them to be in the same "
            "order: %s and %s.",
            theirs,
            ours,
        )
        return None
    if sorted(theirs) != sorted(ours) or len(set(ours)) < len(ours):
        raise ValueError(
            f"Labels are matched by name, and the teacher's ({', '.join(theirs)}) are not the "
            f"student's ({', '.join(ours)}). The student would learn one class's probability as "
            "another's. Set id2label and label2id on the model whose names are wrong."
        )
    order = [theirs.index(name) for name in ours]
    logger.warning("The teacher's labels are read in the order %s to match the student's.", order)
    return order


def label_names(config: PretrainedConfig) -> list[str]:
    """The label names of a model in the order of their ids, in lower case."""
    return [str(name).lower() for _, name in sorted((config.id2label or {}).items())]


def has_generic_labels(config: PretrainedConfig) -> bool:
    """Whether a model's labels are only numbered: `LABEL_0`, `LABEL_1`, ..."""
    return all(GENERIC_LABEL.fullmatch(name.upper()) for name in label_names(config))
