"""Several teachers behind one teacher-shaped module."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput

from kdnlp.models.alignment import align_labels, input_names
from kdnlp.models.averaging import (
    entropy_weights,
    mean_logits,
    mean_sigmoid,
    mean_softmax,
    sigmoid_entropy,
    softmax_entropy,
)
from kdnlp.models.heads import LABELLED_TASKS, MASKED_LOGIT, SEQUENCE_TASKS, task_kind

Weights = Sequence[float] | Literal["by_metric", "entropy"] | None
Average = Literal["probabilities", "logits"]

_LABELS = {"labels", "label", "start_positions", "end_positions"}
_WHOLE_TEXT = (*SEQUENCE_TASKS, "multiple_choice")
"""Tasks whose predictions do not depend on how a text is cut into tokens."""


class TeacherEnsemble(nn.Module):
    """The mean of several teachers' predictions, for every loss that reads logits.

    `average="probabilities"` gives `log(sum_k w_k p_k)`: a softmax of it is the members' mean
    distribution (for multi-label tasks a sigmoid, label by label). At a temperature T above 1 a
    loss reads that mean to the power 1/T, normalised, which is not the mean of the members'
    softened distributions: where the members disagree it is flatter. `average="logits"` is the
    geometric mean, for which the two are the same. Hinton et al. 2015 (arXiv 1503.02531, section
    1) name both. For a regression either is the plain mean.

    The means are taken in float32, whatever precision and device the members have. One member's
    logits are passed on as they are.

    Example:
        ```python
        teacher = TeacherEnsemble([bert, roberta], prefixes=["", "roberta_"])
        trainer = DistillationTrainer(
            student, teacher, args, data_collator=collate, train_dataset=train
        )
        ```

    Args:
        members: fine-tuned models of one task, of any families. Labels are matched by name.
        weights: `None`, all alike; a number at least 0 each, which are normalised; `"by_metric"`,
            proportional to `metrics`; or `"entropy"`, per item proportional to `exp(-H)`, with H
            the entropy in nats of what the member says: a plain choice of ours, under which a
            member that is wrongly sure counts most. Large, Lines, Bagnall 2019 (Data Mining and
            Knowledge Discovery 33) weigh by a power of a cross-validated accuracy; `"by_metric"`
            is the first power, of whatever score is given.
        metrics: a score at least 0 for each member, higher is better, with `"by_metric"`. Measure
            them on rows that are not those of the final report.
        average: `"probabilities"` or `"logits"`.
        prefixes: for members that read other columns, one each: member k reads
            `prefixes[k] + "input_ids"` and so on. `DistillationTrainer` takes `teacher_` off the
            data's columns first, so that the data's is `teacher_roberta_input_ids`; see
            `kdnlp.data.collation.add_teacher_inputs`. Members of the prefix `""` read the
            student's inputs, or `teacher_input_ids` where the data has them.

    Attributes:
        config: a copy of the first member's, whose order of labels is the ensemble's.

    Raises:
        ValueError: if the members' tasks, labels or vocabularies differ, the weights do not fit,
            or entropy is to weigh a regression.
    """

    def __init__(
        self,
        members: Sequence[PreTrainedModel],
        weights: Weights = None,
        metrics: Sequence[float] | None = None,
        average: Average = "probabilities",
        prefixes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.kind = _common_kind(members)
        self.prefixes = _checked_prefixes(prefixes, members, self.kind)
        _check_vocabularies(members, self.prefixes)
        if average not in ("probabilities", "logits"):
            raise ValueError(
                f'average must be "probabilities" or "logits", got {average!r}. They are the '
                "arithmetic and the geometric mean of the members' distributions."
            )
        if weights == "entropy" and self.kind == "regression":
            raise ValueError(
                'weights="entropy" needs distributions, got a regression. A predicted number does '
                "not say how sure a member is. Give numbers, or metrics with by_metric."
            )
        self.average, self.by_entropy = average, weights == "entropy"
        shares = _shares(weights, metrics, len(members))
        self.weights: torch.Tensor
        self.register_buffer("weights", torch.tensor(shares), persistent=False)
        self.members = nn.ModuleList(members)
        self.member_inputs = [_inputs(member, self.kind) for member in members]
        self.config = _config(members, self.prefixes)
        self.orders = [
            _label_order(number, member, self.config, self.kind)
            for number, member in enumerate(members)
        ]

    @property
    def device(self) -> torch.device:
        """Where the first member is."""
        device: torch.device = self.members[0].device  # type: ignore[assignment]
        return device

    @property
    def input_columns(self) -> set[str]:
        """The columns that some member reads, with its prefix."""
        members = zip(self.prefixes, self.member_inputs, strict=True)
        return {prefix + name for prefix, names in members for name in names}

    @property
    def required_columns(self) -> set[str]:
        """The columns of token ids, one for each prefix."""
        return {f"{prefix}input_ids" for prefix in self.prefixes}

    @property
    def output_settings(self) -> dict[str, Any]:
        """What decides the answers beside weights and `config`; `fingerprint_model` reads it."""
        return {
            "kind": self.kind,
            "average": self.average,
            "by_entropy": self.by_entropy,
            "weights": self.weights.tolist(),
            "prefixes": self.prefixes,
            "orders": self.orders,
            "members": [
                {"class": type(member).__name__, "config": member.config.to_dict()}  # type: ignore[operator, union-attr]
                for member in self.members
            ],
        }

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | QuestionAnsweringModelOutput:
        """The mean prediction; each member gets the inputs that its forward names.

        Args:
            input_ids: shape (batch, length), of the members without a prefix.
            attention_mask: the same shape.
            token_type_ids: the same shape.
            position_ids: the same shape.
            labels: for the loss beside the logits, of tasks with one prediction an example; for
                sequence-to-sequence models, what their decoders read.
            **kwargs: further inputs, and those of members with a prefix.

        Returns:
            `logits` in float32, shape (*items, labels), or `start_logits` and `end_logits`; with
            labels also `loss`.

        Raises:
            ValueError: if layers are asked for, a member's inputs are missing, or labels are given
                for a task whose loss is not computed here.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "labels": labels,
            **kwargs,
        }
        given = {name: value for name, value in given.items() if value is not None}
        _check_flags(given)
        each = [self._member_logits(number, m, given) for number, m in enumerate(self.members)]
        mean = self._mean(torch.stack([logits.to(each[0].device) for logits in each]))
        if self.kind == "question_answering":
            start, end = mean.unbind(1)
            return QuestionAnsweringModelOutput(start_logits=start, end_logits=end)
        reads_labels = self.kind == "seq2seq_lm"
        loss = None if labels is None or reads_labels else self._loss(mean, labels)
        return SequenceClassifierOutput(loss=loss, logits=mean)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "TeacherEnsemble":
        """Move the members, but for those that are where `device_map` put them."""
        for member in self.members:
            # Weights on the disk have nothing to move, and what is spread finds its inputs itself.
            if getattr(member, "hf_device_map", None) is None:
                member._apply(fn, recurse)
        super()._apply(fn, recurse=False)
        return self

    def _member_logits(
        self, number: int, member: nn.Module, given: Mapping[str, Any]
    ) -> torch.Tensor:
        """What one member says, with the ensemble's labels, in float32."""
        prefix = self.prefixes[number]
        names = self.member_inputs[number]
        inputs = {name: given[prefix + name] for name in names if prefix + name in given}
        if not {"input_ids", "inputs_embeds"} & set(inputs):
            raise ValueError(
                f"Expected the column {prefix}input_ids, which {type(member).__name__} reads, got "
                f"{', '.join(given) or 'no inputs'}. Without it the member has nothing to answer. "
                f"Add teacher_{prefix}input_ids to the data (kdnlp.add_teacher_inputs), or change "
                "prefixes."
            )
        outputs = member(**inputs)
        if self.kind != "question_answering":
            logits: torch.Tensor = outputs["logits"].float()
            order = self.orders[number]
            return logits if order is None else logits[..., order]
        logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=1).float()
        if inputs.get("attention_mask") is not None:
            # The answer is no padding; its share would be taken from the other positions.
            padding = inputs["attention_mask"][:, None].to(logits.device) == 0
            logits = logits.masked_fill(padding, MASKED_LOGIT)
        return logits

    def _mean(self, logits: torch.Tensor) -> torch.Tensor:
        if len(logits) == 1:
            return logits[0]
        several = self.kind == "multi_label_classification"
        if self.by_entropy:
            weights = entropy_weights((sigmoid_entropy if several else softmax_entropy)(logits))
        else:
            weights = self.weights.to(logits).view(-1, *[1] * (logits.dim() - 1))
        if self.average == "logits" or self.kind == "regression":
            return mean_logits(logits, weights)
        return (mean_sigmoid if several else mean_softmax)(logits, weights)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.kind == "regression":
            return F.mse_loss(logits.squeeze(), labels.squeeze().float())
        if self.kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.float())
        if self.kind in _WHOLE_TEXT:
            return F.cross_entropy(logits, labels)
        raise ValueError(
            f"An ensemble has no loss of its own for the task {self.kind}, and got labels. Leave "
            "them out, and compare its logits with them."
        )


def _inputs(member: Any, kind: str) -> set[str]:
    """What a member reads; labels only where its decoder reads them."""
    names = input_names(member) - {"return_dict"}
    if kind != "seq2seq_lm":
        names -= _LABELS
    return {name for name in names if not name.startswith("output_")}


def _common_kind(members: Sequence[PreTrainedModel]) -> str:
    kinds = [task_kind(member) for member in members]
    if not kinds or len(set(kinds)) > 1:
        raise ValueError(
            f"Expected at least one member, all of one task, got {', '.join(kinds) or 'none'}. "
            "Answers to different questions have no mean. Where a member's configuration does not "
            "say what it was fine-tuned on, set config.problem_type."
        )
    return kinds[0]


def _checked_prefixes(
    prefixes: Sequence[str] | None, members: Sequence[PreTrainedModel], kind: str
) -> list[str]:
    if prefixes is None:
        return [""] * len(members)
    if isinstance(prefixes, str) or len(prefixes) != len(members):
        raise ValueError(
            f"Expected a prefix for each of the {len(members)} members, got {prefixes!r}. Each "
            'must know its columns; "" are those without a prefix.'
        )
    if len(set(prefixes)) > 1 and kind not in _WHOLE_TEXT:
        raise ValueError(
            f"Members that read other columns cut the text into other tokens, got prefixes "
            f"{list(prefixes)} for the task {kind}, which predicts per token. Their answers would "
            "be of different places. Use members with one tokenizer."
        )
    return list(prefixes)


def _check_vocabularies(members: Sequence[PreTrainedModel], prefixes: Sequence[str]) -> None:
    sizes: dict[str, set[int]] = {}
    for prefix, member in zip(prefixes, members, strict=True):
        sizes.setdefault(prefix, set()).add(member.config.vocab_size)
    for prefix, found in sizes.items():
        if len(found) > 1:
            raise ValueError(
                f"Members that read the same columns must share a vocabulary, got vocabularies of "
                f"{sorted(found)} token ids for {prefix}input_ids. The same ids would be other "
                'words to some, whose answers would be noise. Give them prefixes, such as ["", '
                '"roberta_"], and the data columns of their own.'
            )


def _config(members: Sequence[PreTrainedModel], prefixes: Sequence[str]) -> PretrainedConfig:
    """The first member's configuration, with the vocabulary of what the ensemble is given."""
    config: PretrainedConfig = copy.deepcopy(members[0].config)
    if "" in prefixes:
        config.vocab_size = members[list(prefixes).index("")].config.vocab_size
    return config


def _label_order(
    number: int, member: PreTrainedModel, config: PretrainedConfig, kind: str
) -> list[int] | None:
    if kind not in LABELLED_TASKS:
        return None
    try:
        return align_labels(member.config, config)
    except ValueError as error:
        raise ValueError(
            f"Member {number} ({type(member).__name__}) as the teacher, member 0 as the student: "
            f"{error}"
        ) from error


def _shares(weights: Weights, metrics: Sequence[float] | None, count: int) -> list[float]:
    """The weights, which sum to 1."""
    if (metrics is not None) != (weights == "by_metric"):
        raise ValueError(
            f'metrics go with weights="by_metric", got weights {weights!r} and metrics {metrics}. '
            "One of the two would be ignored."
        )
    if weights is None or weights == "entropy":
        return [1 / count] * count
    values = metrics if weights == "by_metric" else weights
    if isinstance(values, str) or values is None:
        raise ValueError(
            f'weights must be None, numbers, "by_metric" or "entropy", got {weights!r}. Nothing '
            "says how the members would be weighed."
        )
    numbers = [float(value) for value in values]
    total = sum(numbers)
    if len(numbers) != count or min(numbers) < 0 or not 0 < total < float("inf"):
        raise ValueError(
            f"Expected {count} finite weights or metrics, one a member, at least 0 and not all 0, "
            f"got {numbers}. A negative one would teach the opposite of a member's answers."
        )
    return [number / total for number in numbers]


def _check_flags(given: Mapping[str, Any]) -> None:
    asked = [name for name, value in given.items() if name.startswith("output_") and value is True]
    if asked:
        raise ValueError(
            f"Expected a loss on logits, got one that asks for {', '.join(asked)}. An ensemble has "
            "no layers: its members' widths and depths differ. Take such a loss from one teacher."
        )
