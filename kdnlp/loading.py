"""Models, configurations and tokenizers from the Hub or a folder: data is read, no code is run.

Weights come from safetensors alone. Python code that lies beside them runs only where the caller
says `trust_remote_code=True`. Nothing else in the package calls `from_pretrained`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

CONVERT = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.clone() for k, v in '
    "torch.load('pytorch_model.bin', map_location='cpu', weights_only=True).items()}, "
    "'model.safetensors', {'format': 'pt'})\""
)
"""What makes safetensors of a pickle, without running what is in it; typed in its folder."""

_LEFT_OUT = "%s has Python code of its own for its %s, left out: transformers' class is used."

_HUB_OPTIONS = ("revision", "token", "cache_dir", "subfolder", "trust_remote_code")


_NOT_FETCHED: dict[type[Exception], str] = {
    HFValidationError: "it is no OWNER/NAME either",
    GatedRepoError: "it is gated: ask for access on its page, and log in with `hf auth login`",
    RepositoryNotFoundError: "not found there, or private and you are not logged in",
    RevisionNotFoundError: "it has no such revision",
    OfflineModeIsEnabled: "offline: HF_HUB_OFFLINE is set, and it is not in the cache",
    LocalEntryNotFoundError: "it cannot be reached, and the model is not in the cache",
}
"""Why a configuration cannot be fetched, by error; of several that fit, the first."""


def load_config(name: str, **kwargs: Any) -> PretrainedConfig:
    """The configuration of a model; of `kwargs` it takes what says where it is and what may run.

    Raises:
        ValueError: if it needs code of its own that is not trusted.
        FileNotFoundError: if there is no such model, here or on the Hub.
    """
    options = _hub_options(kwargs)
    with _absence_explained(name, kwargs.get("subfolder", "")), _code_explained(name):
        return AutoConfig.from_pretrained(name, **options)


def load_model(auto_class: Any, name: str, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
    """A model from safetensors, and what transformers says of its keys.

    `load_config` of the same name says more clearly that there is no such model; call it first.

    Where transformers has a class for the model, that class is used in place of code that lies
    beside the weights, and what is saved later does not lead to the code either.

    Raises:
        ValueError: if it needs code of its own that is not trusted.
        OSError: if its weights are not in safetensors.
    """
    trusted = bool(kwargs.pop("trust_remote_code", False))
    check_safetensors(Path(name, kwargs.get("subfolder", "")))
    with _code_explained(name), _pickles_explained(name):
        model, loading = auto_class.from_pretrained(
            name,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=trusted,
            **kwargs,
        )
    if has_own_code(model) and trusted:
        logger.warning("%s runs Python code of its own; what is saved carries it along.", name)
    elif has_own_code(model):
        logger.warning(_LEFT_OUT, name, "model")
        del model.config.auto_map
    # It is not saved with the configuration; cards tell it.
    model.config._commit_hash = _loaded_commit(name, kwargs)
    return model, loading


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """A tokenizer; of `kwargs` it takes the same as `load_config`.

    Raises:
        ValueError: if it needs code of its own that is not trusted.
    """
    options = _hub_options(kwargs)
    with _code_explained(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
    if not options["trust_remote_code"] and tokenizer.init_kwargs.pop("auto_map", None):
        logger.warning(_LEFT_OUT, name, "tokenizer")
    return tokenizer


def forget_lengths(tokenizer: Any) -> None:
    """Take off the truncation and padding that a fast tokenizer keeps of its last call, and saves.

    `tokenizers` alone would cut and pad by them; transformers says with each call what it wants.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def _loaded_commit(name: str, kwargs: dict[str, Any]) -> str | None:
    """The commit of the Hub that was just loaded: the name of its folder in the cache."""
    if os.path.isdir(name):
        return None
    options = {key: kwargs.get(key) for key in ("cache_dir", "revision")}
    place = Path(kwargs.get("subfolder", ""))
    path = try_to_load_from_cache(name, (place / "config.json").as_posix(), **options)
    return Path(path).parents[len(place.parts)].name if isinstance(path, str) else None


def has_own_code(model: Any) -> bool:
    """Whether a model's configuration names Python code that lies beside its weights."""
    return bool(getattr(model.config, "auto_map", None))


def check_safetensors(folder: str | os.PathLike[str]) -> None:
    """Raise `OSError` if a folder holds weights, and holds them only as pickles."""
    place = Path(folder)
    pickles = sorted(path.name for path in place.glob("pytorch_model*.bin"))
    if pickles and not any(place.glob("*.safetensors")):
        raise OSError(_pickled(os.fspath(folder), ", ".join(pickles[:2])))


@contextmanager
def _absence_explained(name: str, subfolder: str) -> Iterator[None]:
    """Say of a configuration that is not there that the model is not, and where it was looked for.

    transformers takes every name that is no folder for one on the Hub.
    """
    if os.path.isdir(name) and not Path(name, subfolder, "config.json").is_file():
        raise FileNotFoundError(
            f"Expected a model in {Path(name, subfolder)}, got a folder without config.json. "
            "Name the output_dir of a run that has ended, or a folder that save_pretrained wrote."
        )
    if os.path.isfile(name):
        raise FileNotFoundError(
            f"Expected the folder of a model, got the file {name}. Name the folder that it is in."
        )
    try:
        yield
    except (OSError, ValueError) as error:
        why = None if os.path.isdir(name) else _why_not_fetched(error)
        if why is None:
            raise
        raise FileNotFoundError(
            f"No folder {name} here, and no such model could be fetched from the Hub ({why}). "
            "Check the name."
        ) from error


def _why_not_fetched(error: BaseException) -> str | None:
    causes = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    for kind, why in _NOT_FETCHED.items():
        if any(isinstance(cause, kind) for cause in causes):
            offline = kind is LocalEntryNotFoundError and constants.HF_HUB_OFFLINE
            return _NOT_FETCHED[OfflineModeIsEnabled] if offline else why
    return None


@contextmanager
def _pickles_explained(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if os.path.isdir(name) or "safetensors" not in str(error):
            raise
        raise OSError(_pickled(name, "none, and perhaps pickles")) from error


def _pickled(name: str, found: str) -> str:
    return (
        f"Expected weights of {name} in safetensors, got {found}. A pickle may run any code when "
        f"it is read. Convert it, in its folder, with what reads tensors alone: {CONVERT}"
    )


@contextmanager
def _code_explained(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"Expected a model whose code is part of transformers, got {name}, which brings Python "
            "code of its own. It could do anything on this machine. Read the code; then pass "
            "trust_remote_code=True, on the command line --trust_remote_code."
        ) from error


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    # Unless told, transformers would ask on the terminal whether to run the code.
    return {"trust_remote_code": False} | {k: v for k, v in kwargs.items() if k in _HUB_OPTIONS}
