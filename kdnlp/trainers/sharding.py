"""Training under FSDP2: which settings are sound, and how the sharded model becomes whole again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from kdnlp.models.layers import find_blocks
from kdnlp.trainers.step import WeightedLossTrainer


def check_strategy(trainer: WeightedLossTrainer) -> None:
    """Raise `ValueError` for a way of distributing the model that would train wrongly.

    DDP and FSDP2 remain.
    """
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            f"{type(trainer).__name__} runs under DDP and FSDP2, got DeepSpeed. Its engine keeps "
            "the gradients to itself, so that those of blocks that were not drawn cannot be given "
            "or withheld, and it would not shard the frozen model. Use "
            "recipes/accelerate/fsdp2.yaml, which shards what ZeRO-3 shards."
        )
    asked = trainer.args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if asked and not trainer.is_fsdp_enabled:
        raise ValueError(
            "FSDP was asked for, by fsdp or by Accelerate's configuration, and Accelerate did not "
            f"start it here, with {trainer.args.world_size} process(es) on "
            f"{trainer.args.device.type}: the run would go on with whole models on every process, "
            "and not say so. Leave FSDP out, or start several processes on GPUs."
        )
    if trainer.is_fsdp_enabled:
        _check_fsdp(trainer, trainer.accelerator.state.fsdp_plugin)


def _check_fsdp(trainer: WeightedLossTrainer, plugin: Any) -> None:
    wrong = {
        "FSDP version 1": (plugin.fsdp_version != 2, "set fsdp_version: 2"),
        "cpu_ram_efficient_loading": (
            plugin.cpu_ram_efficient_loading,
            "set fsdp_cpu_ram_efficient_loading: false, for the frozen model would be empty on all "
            "processes but the first",
        ),
        "FSDP's own activation checkpointing": (
            plugin.activation_checkpointing,
            "use gradient_checkpointing=True, which also reaches the predecessor's blocks",
        ),
        "sharded checkpoints": (
            "SHARDED" in str(plugin.state_dict_type),
            "set fsdp_state_dict_type: FULL_STATE_DICT, for torch reads the others by unpickling, "
            "which runs whatever code is in them",
        ),
        "model_init": (trainer.model_init is not None, "pass the model itself"),
        "auto_find_batch_size": (
            trainer.args.auto_find_batch_size,
            "set per_device_train_batch_size; a sharded run cannot be undone and started again",
        ),
        "an optimizer of your own": (
            trainer.optimizer is not None,
            "name one by optim; yours holds parameters that are about to be sharded",
        ),
        "loss_balancing=gradient_norm": (
            getattr(trainer.args, "loss_balancing", "none") == "gradient_norm",
            "use uncertainty; the first block's weights are gone when the gradient is measured",
        ),
    }
    tied = tied_apart(trainer.student)
    wrong[f"weights tied between {' and '.join(tied)}"] = (
        bool(tied),
        "use DDP (recipes/accelerate/multi_gpu.yaml), or untie them",
    )
    found = {name: fix for name, (is_set, fix) in wrong.items() if is_set}
    if found:
        raise ValueError(
            f"Under FSDP expected version 2 on a model that stands ready, got "
            f"{', '.join(found)}: {'; '.join(found.values())}."
        )


def tied_apart(model: PreTrainedModel) -> list[str]:
    """The names of one tensor that modules of different shards hold, or none.

    Accelerate puts the embeddings and an output layer that is tied to them into one shard. Any
    other tie, as BERT's masked-word head has in its bias, and T5 between its stacks, torch refuses.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tied = {id(end.weight) for end in ends if end is not None}
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if not (module in ends and id(parameter) in tied):
                names.setdefault(id(parameter), []).append(name)
    return next((n for key, n in names.items() if len(n) > 1 or key in tied), [])


def shard_blocks(model: nn.Module, device: torch.device) -> None:
    """Shard the blocks of a frozen model over all processes, and put the rest on the device.

    A block's weights are gathered when it runs and let go after it. Embeddings and head stay whole.

    Args:
        model: a transformers model, or several teachers as one; it is changed for good.
        device: where the shards go.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in _transformers_models(model):
        for block in find_blocks(part):
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    nn.Module.to(model, device)


@contextmanager
def sharded(trainer: WeightedLossTrainer, whole: PreTrainedModel) -> Iterator[None]:
    """Let the stock trainer shard the model that it holds, a copy of `whole`.

    Afterwards `whole` has the trained weights on every process, and is the trainer's model again.
    Where training stops by an error it keeps its first weights: gathering would wait for a process
    that is no longer there.

    Args:
        trainer: whose `model` is the copy.
        whole: the caller's model, which is not sharded.
    """
    trainer.is_fsdp_enabled = True
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = [type(find_blocks(whole)[0]).__name__]
    try:
        yield
        whole.load_state_dict(full_weights(trainer.student))
        nn.Module.to(whole, trainer.args.device)
    finally:
        trainer.is_fsdp_enabled = False
        trainer.model = trainer.model_wrapped = whole


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a sharded model with whole tensors; every process must call this."""
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return cast(dict[str, torch.Tensor], state)


def first_elements(parameters: list[nn.Parameter]) -> torch.Tensor:
    """The sum of one element of each parameter, or of none where a process has no share of it.

    In the graph it reaches every parameter, on whichever processes it lies.
    """
    local = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
    return torch.cat([tensor.flatten()[:1] for tensor in local]).sum()


def _transformers_models(model: nn.Module) -> list[PreTrainedModel]:
    if isinstance(model, PreTrainedModel):
        return [model]
    return [m for child in model.children() for m in _transformers_models(child)]
