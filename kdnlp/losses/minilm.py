"""Last-block attention and value relations, the first MiniLM (Wang et al. 2020)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PretrainedConfig

from kdnlp.losses.attention import check_heads
from kdnlp.losses.base import ENCODED_TASKS
from kdnlp.losses.citations import MINILM
from kdnlp.losses.relation import RelationLoss

PLAIN_ATTENTION = frozenset(
    {
        "bert",
        "camembert",
        "data2vec-text",
        "distilbert",
        "electra",
        "ernie",
        "megatron-bert",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
    }
)
"""Model types whose attention is `softmax(Q K^T / sqrt(d))` over all attended positions."""


class MiniLMLoss(RelationLoss):
    """Match a block's attention distributions, and the relations among its values.

    Reads `queries`, `keys` and `values`, shape (batch, length, heads * head size): `relation_kl`
    of the queries with the keys, plus `self_relation` of the values, over the models' own heads.
    Widths and depths may differ, the numbers of heads may not. `RelationLoss` is its successor and
    asks for less.

    Args:
        student_layer: a block, from 1; `None` is the last.
        teacher_layer: a block, from 1; `None` is the last, as in the paper.

    Raises:
        ValueError: before training, for a layer that a model does not have, models of different
            numbers of heads, or a model whose attention is more than its queries and keys: rotary
            embeddings (ModernBERT, Llama), relative positions (DeBERTa, MPNet, T5) or a causal
            mask (GPT-2). `PLAIN_ATTENTION` lists the model types that can be taught so.

    Source: Wang, Wei, Dong, Bao, Yang, Zhou 2020, "MiniLM: Deep Self-Attention Distillation for
    Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS, arXiv 2002.10957.
    """

    citation = MINILM

    tasks = ENCODED_TASKS - {"causal_lm"}
    kinds: ClassVar[Mapping[str, tuple[str, str]]] = {
        "query-key": ("queries", "keys"),
        "value": ("values", "values"),
    }

    def __init__(self, student_layer: int | None = None, teacher_layer: int | None = None) -> None:
        super().__init__(tuple(self.kinds), None, student_layer, teacher_layer)

    def prepare(
        self, student: PretrainedConfig, teacher: PretrainedConfig | None, task: str
    ) -> None:
        """Choose the layers; see the class for what is refused."""
        super().prepare(student, teacher, task)
        assert teacher is not None
        for model in (student, teacher):
            _check_attention(model)
        check_heads(type(self).__name__, student, teacher)

    def config(self) -> dict[str, Any]:
        """The two layers."""
        return {"student_layer": self.student_layer, "teacher_layer": self.teacher_layer}


def _check_attention(config: PretrainedConfig) -> None:
    causal = getattr(config, "is_decoder", False)
    if config.model_type not in PLAIN_ATTENTION or causal:
        raise ValueError(
            "MiniLMLoss needs models whose attention follows from queries and keys alone, one of "
            f"{', '.join(sorted(PLAIN_ATTENTION))}, got {config.model_type!r}"
            f"{' with is_decoder' if causal else ''}. Rotary or relative positions or a causal "
            "mask have a part in its attention, and the student would learn another one; use "
            "RelationLoss, which does not mix queries and keys."
        )
