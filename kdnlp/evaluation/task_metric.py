"""What every metric here is: an `evaluate.Metric` around one function, without downloads."""

import os
from typing import Any, ClassVar

import evaluate
from datasets import Features, Value

_INPUTS = """
Args:
    predictions: one per example: a class id, a real number, zeros and ones, tags, or an answer.
    references: the labels in the same order; of an answer, the list of all that are right.
"""


class TaskMetric(evaluate.Metric):
    """What the metrics share: `evaluate`'s interface around one function, `score`.

    Predictions and references stay in memory. `evaluate`'s own default writes them to a locked
    file below the user's home, where several runs on one machine wait for each other; it is used
    only with `num_process > 1`, which needs the shared file.

    Args:
        config_name: as in `evaluate.Metric`.
        keep_in_memory: `None` means yes for one process, no for several.
        num_process: the number of processes that add examples to one result.
        **kwargs: the other arguments of `evaluate.Metric`.
    """

    key: ClassVar[str]
    types: ClassVar[tuple[Any, Any]] = (Value("int64"), Value("int64"))
    description_text: ClassVar[str]

    def __init__(
        self,
        config_name: str | None = None,
        keep_in_memory: bool | None = None,
        num_process: int = 1,
        **kwargs: Any,
    ) -> None:
        in_memory = num_process == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(config_name, keep_in_memory=in_memory, num_process=num_process, **kwargs)

    @staticmethod
    def score(predictions: Any, references: Any, **kwargs: Any) -> float:
        """The metric of `predictions` against `references`, one of each per example."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        features = Features(dict(zip(("predictions", "references"), self.types, strict=True)))
        return evaluate.MetricInfo(
            description=self.description_text,
            citation="",
            inputs_description=_INPUTS,
            features=features,
        )

    def _build_data_dir(self) -> str:
        if not self.keep_in_memory:
            return super()._build_data_dir()
        return os.path.join(self._data_dir_root, self.name, self.config_name)

    def _compute(self, *, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return {self.key: self.score(predictions, references, **kwargs)}
