"""The columns of tokenised rows that every kind of task has."""

from datasets import Sequence, Value
from transformers import PreTrainedTokenizerBase

MODEL_INPUTS: dict[str, str] = {
    "input_ids": "int32",
    "attention_mask": "int8",
    "token_type_ids": "int8",
}
"""The columns that are kept, with the narrowest type that holds them; collators widen to int64."""


def input_columns(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Those of `MODEL_INPUTS` that the tokenizer makes."""
    return [column for column in MODEL_INPUTS if column in tokenizer.model_input_names]


def input_features(columns: list[str]) -> dict[str, Sequence]:
    """The types in which the columns are stored."""
    return {column: Sequence(Value(MODEL_INPUTS[column])) for column in columns}
