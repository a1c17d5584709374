"""What a model is exported to, and how far its answers may move."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from kdnlp.models.onnx_graph import DEFAULT_OPSET

Precision = Literal["float32", "float16", "bfloat16", "int8"]

TOLERANCES: dict[str, float] = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.15, "int8": 0.5}
"""The largest difference of a logit, as a share of the model's largest, by what computes it.

Float32 differs by the order of its sums alone. The others round every weight or activation, and the
errors of all blocks add up: what is far above that is an error of another kind.
"""

AGREEMENTS: dict[str, float] = {"float32": 0.99, "float16": 0.97, "bfloat16": 0.9, "int8": 0.9}
"""The least share of predictions that stay the same."""


@dataclass(kw_only=True)
class ExportSettings:
    """One export, and what its gate lets pass.

    Raises:
        ValueError: if two settings contradict each other, or one is out of range.
    """

    group_title: ClassVar[str] = "the export and its gate"

    format: Literal["onnx", "safetensors", "pytorch-int8"] = field(
        default="onnx",
        metadata={
            "help": "onnx: a graph for ONNX Runtime. safetensors: a transformers model in half "
            "precision, see --dtype. pytorch-int8: a transformers model whose linear maps keep "
            "int8 weights, by torchao, which whoever loads it needs too."
        },
    )
    quantize: Literal["dynamic-int8"] | None = field(
        default=None,
        metadata={
            "help": "onnx only: int8 weights, and activations quantized call by call; without it, "
            "the graph is in float32."
        },
    )
    dtype: Literal["float16", "bfloat16", "float32"] | None = field(
        default=None,
        metadata={"help": "safetensors only: the type of the weights; without it, float16."},
    )
    opset: int | None = field(
        default=None,
        metadata={"help": f"onnx only: the version of its operators; default {DEFAULT_OPSET}."},
    )
    num_rows: int = field(
        default=64,
        metadata={"help": "Rows on which logits are compared before anything else is measured."},
    )
    tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Largest difference of a logit that passes, as a share of the model's largest "
            f"logit; default {', '.join(f'{v} for {k}' for k, v in TOLERANCES.items())}."
        },
    )
    min_agreement: float | None = field(
        default=None,
        metadata={
            "help": "Least share of predictions that must stay the same; default "
            f"{', '.join(f'{v} for {k}' for k, v in AGREEMENTS.items())}."
        },
    )
    batch_size: int = field(
        default=32, metadata={"help": "Rows in a batch when the metrics are measured."}
    )

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        for name, owner in (("quantize", "onnx"), ("opset", "onnx"), ("dtype", "safetensors")):
            if getattr(self, name) is not None and self.format != owner:
                raise ValueError(
                    f"{name}={getattr(self, name)} is a setting of format={owner}, got "
                    f"format={self.format}. It would change nothing. Leave it out, or change the "
                    "format."
                )
        if self.opset is not None and self.opset < DEFAULT_OPSET:
            raise ValueError(
                f"opset must be at least {DEFAULT_OPSET}, which torch's exporter writes, got "
                f"{self.opset}."
            )
        if self.num_rows < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_rows and batch_size must be at least 1, got {self.num_rows} and "
                f"{self.batch_size}. An export that is compared on no row would not be checked."
            )
        if not self.largest_share >= 0 or not 0 <= self.least_agreement <= 1:
            raise ValueError(
                "tolerance must be at least 0 and min_agreement lie in 0..1, got "
                f"{self.largest_share} and {self.least_agreement}."
            )

    @property
    def precision(self) -> Precision:
        """What the export computes or keeps its weights in."""
        if self.format == "pytorch-int8" or self.quantize == "dynamic-int8":
            return "int8"
        return "float32" if self.format == "onnx" else self.dtype or "float16"

    @property
    def largest_share(self) -> float:
        """The tolerance that holds."""
        return TOLERANCES[self.precision] if self.tolerance is None else self.tolerance

    @property
    def least_agreement(self) -> float:
        """The least agreement that holds."""
        return AGREEMENTS[self.precision] if self.min_agreement is None else self.min_agreement
