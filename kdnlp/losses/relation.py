"""Self-attention relations: how a block's queries, keys and values relate positions (MiniLMv2)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig

from kdnlp.losses.base import ENCODED_TASKS, DistillationLoss, Layers, Outputs, masked_mean
from kdnlp.losses.block_choice import choose_layer
from kdnlp.losses.logits import kl_terms
from kdnlp.losses.vectors import full_precision

Vectors = tuple[torch.Tensor, torch.Tensor]


def self_relation(
    student: torch.Tensor,
    teacher: torch.Tensor,
    relation_heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`KL(R_T || R_S)`, `R = softmax(A A^T / sqrt(d))`, mean over heads and attended positions.

    The vectors `A` of every model are cut into `relation_heads` heads of its own size `d`, so that
    neither widths nor attention heads need to agree.

    Args:
        student: queries, keys or values, shape (batch, length, student width).
        teacher: the same kind, shape (batch, length, teacher width).
        relation_heads: any number that divides both widths.
        mask: the attention mask, shape (batch, length); `None` counts all tokens.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the heads do not divide the widths, or the shapes do not fit.
    """
    return relation_kl((student, student), (teacher, teacher), relation_heads, mask)


def relation_kl(
    student: Vectors,
    teacher: Vectors,
    relation_heads: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`KL(R_T || R_S)`, `R = softmax(A B^T / sqrt(d))`, mean over heads and attended positions.

    Args:
        student: the vectors `A` and `B`, each of shape (batch, length, student width).
        teacher: the same, of shape (batch, length, teacher width).
        relation_heads: any number that divides both widths.
        mask: the attention mask, shape (batch, length); `None` counts all tokens.

    Returns:
        A scalar in nats, at least 0.

    Raises:
        ValueError: if the heads do not divide the widths, or the shapes do not fit.
    """
    mask = None if mask is None else mask != 0
    _check_shapes(student, teacher, relation_heads, mask)
    ours, theirs = (_log_relation(v, relation_heads, mask) for v in (student, teacher))
    return masked_mean(kl_terms(theirs, ours).sum(-1).mean(1), mask)


class RelationLoss(DistillationLoss):
    """Match a block's relations among its queries, among its keys and among its values.

    Reads those of `queries`, `keys` and `values` that the relations use, shape (batch, length,
    heads * head size), before any rotary embedding. The sum over the kinds of relation of
    `self_relation`. Widths, heads and depths of the models may differ. It reads one block of each
    model, and teaches the student's later blocks and head nothing; the paper distils before
    fine-tuning. The relations of a decoder are taken between all attended positions, not only to
    earlier ones. Memory: a few times heads * length^2 numbers per example.

    Args:
        relations: some of `"query"`, `"key"` and `"value"`.
        relation_heads: heads into which both models' vectors are cut; the paper takes more than
            the models have, 48 for 12-head and 64 for 16-head teachers. `None` takes the teacher's
            number of attention heads, and where that does not divide both widths, as for keys and
            values of grouped queries, the largest smaller number that does.
        student_layer: a block, from 1; `None` is the last.
        teacher_layer: a block, from 1; `None` is the last, which is the paper's choice for teachers
            of 12 blocks. For large ones of 24 it takes an upper middle one: 21 for BERT, 19 for
            RoBERTa and XLM-R.

    Raises:
        ValueError: for unknown or no relations; before training, for a layer that a model does not
            have; at the first step, for heads that do not divide the widths.

    Source: Wang, Bao, Huang, Dong, Wei 2021, "MiniLMv2: Multi-Head Self-Attention Relation
    Distillation for Compressing Pretrained Transformers", Findings of ACL, arXiv 2012.15828.
    """

    tasks = ENCODED_TASKS
    unit = "tokens"
    citation = """@inproceedings{wang2021minilmv2,
  title={{MiniLMv2}: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers},
  author={Wang, Wenhui and Bao, Hangbo and Huang, Shaohan and Dong, Li and Wei, Furu},
  booktitle={Findings of the Association for Computational Linguistics: ACL-IJCNLP 2021},
  year={2021}
}"""

    kinds: ClassVar[Mapping[str, tuple[str, str]]] = {
        "query": ("queries", "queries"),
        "key": ("keys", "keys"),
        "value": ("values", "values"),
    }

    def __init__(
        self,
        relations: Sequence[str] = ("query", "key", "value"),
        relation_heads: int | None = None,
        student_layer: int | None = None,
        teacher_layer: int | None = None,
    ) -> None:
        super().__init__()
        self.relations = self._checked(relations)
        if relation_heads is not None and relation_heads < 1:
            raise ValueError(f"relation_heads must be at least 1, got {relation_heads}.")
        self.relation_heads = relation_heads
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        self.needs = frozenset(field for name in self.relations for field in self.kinds[name])
        self.chosen_layers: tuple[int, int] | None = None
        self.teacher_heads = 1

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Choose the layers and note the teacher's heads; see the class for what is refused."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        self.chosen_layers = (
            choose_layer(student, self.student_layer, "student_layer"),
            choose_layer(teacher, self.teacher_layer, "teacher_layer"),
        )
        self.teacher_heads = teacher.num_attention_heads
        for config in (student, teacher):
            _check_relation_heads(self.relation_heads, config)

    def layers(self) -> dict[str, Layers]:
        """The one block of each model that is read."""
        assert self.chosen_layers is not None, "prepare chooses the layers"
        student, teacher = self.chosen_layers
        return {field: ([student], [teacher]) for field in sorted(self.needs)}

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of one batch; see the class."""
        assert self.chosen_layers is not None, "prepare chooses the layers"
        ours, theirs = self.chosen_layers
        total = []
        for name in self.relations:
            left, right = self.kinds[name]
            vectors = student[left][ours], student[right][ours]
            targets = teacher[left][theirs], teacher[right][theirs]
            heads = self.relation_heads or _common_heads(
                vectors[0].size(-1), targets[0].size(-1), self.teacher_heads
            )
            total.append(relation_kl(vectors, targets, heads, batch.get("attention_mask")))
        return torch.stack(total).sum()

    def config(self) -> dict[str, Any]:
        """The relations, their heads and the two layers."""
        return {
            "relations": list(self.relations),
            "relation_heads": self.relation_heads,
            "student_layer": self.student_layer,
            "teacher_layer": self.teacher_layer,
        }

    def _checked(self, relations: Sequence[str]) -> tuple[str, ...]:
        names = (relations,) if isinstance(relations, str) else tuple(relations)
        if not names or len(set(names)) < len(names) or not set(names) <= set(self.kinds):
            raise ValueError(
                f"relations must be some of {', '.join(self.kinds)}, each once, got {relations!r}. "
                "Without one there is nothing to learn, and twice it would weigh double."
            )
        return names


def _log_relation(vectors: Vectors, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Log probabilities over all attended positions, shape (batch, heads, length, length)."""
    left, right = (full_precision(v).unflatten(-1, (heads, -1)).transpose(1, 2) for v in vectors)
    # The divergence of two close relations is smaller than the rounding of half precision.
    with torch.autocast(left.device.type, enabled=False):
        scores = left @ right.transpose(-1, -2) / math.sqrt(left.size(-1))
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
    return scores.log_softmax(-1)


def _check_relation_heads(relation_heads: int | None, config: PretrainedConfig) -> None:
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    width = config.num_attention_heads * own if own else config.hidden_size
    if relation_heads and width % relation_heads:
        raise ValueError(
            f"relation_heads must divide the width {width} of the {config.model_type} model's "
            f"queries, got {relation_heads}. The last head would be smaller than the others; leave "
            "it out for a number that fits."
        )


def _common_heads(student_width: int, teacher_width: int, most: int) -> int:
    """The largest number up to `most` that divides both widths."""
    common = math.gcd(student_width, teacher_width)
    return max(heads for heads in range(1, most + 1) if common % heads == 0)


def _check_shapes(
    student: Vectors, teacher: Vectors, heads: int, mask: torch.Tensor | None
) -> None:
    positions = {tuple(v.shape[:2]) for v in (*student, *teacher)}
    positions |= set() if mask is None else {tuple(mask.shape)}
    if len(positions) > 1:
        raise ValueError(
            "Vectors and attention mask must have one (batch, length), got "
            f"{sorted(positions)}. Relations between different positions would be compared."
        )
    widths = sorted({v.size(-1) for v in (*student, *teacher)})
    if any(width % heads for width in widths):
        raise ValueError(
            f"relation_heads must divide the widths of both models' vectors, {widths}, got "
            f"{heads}. The last head would be smaller than the others; leave it out for a number "
            "that fits."
        )
