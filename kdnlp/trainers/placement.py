"""Where the models of a run lie: a device a process, the frozen partner beside the student."""

import copy
import logging
import os
import platform
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from kdnlp.trainers.sharding import shard_blocks

logger = logging.getLogger(__name__)


def place_partner(
    partner: PreTrainedModel, student: PreTrainedModel, device: torch.device, shard: bool
) -> PreTrainedModel:
    """Freeze a partner, and put it on the run's device: whole, or a share of it.

    Returns:
        The partner; a copy of it where it is sharded, which would change it for good.
    """
    _check_own_weights(student, partner)
    partner.requires_grad_(False)
    partner.eval()
    # What transformers has dispatched or quantized is where it belongs, and cannot move.
    if getattr(partner, "hf_device_map", None) is not None:
        return partner
    if shard:
        partner = copy.deepcopy(partner)
        shard_blocks(partner, device)
    else:
        nn.Module.to(partner, device)
    return partner


def check_processes(args: TrainingArguments) -> None:
    """Raise `ValueError` for several GPUs in one process, and for nodes with a disk each."""
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and would train with DataParallel, which copies "
            "the model without its frozen partner. Start one process per GPU: "
            f"accelerate launch --num_processes {args.n_gpu} ..., or set CUDA_VISIBLE_DEVICES."
        )
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    if args.save_on_each_node and args.world_size > on_this_node:
        raise ValueError(
            "Expected save_on_each_node=False on several nodes, got True. Transformers 5 writes "
            "the weights on the first process alone, and the run could not be resumed from what "
            "lies on the other nodes. Put output_dir on a disk that all nodes share."
        )


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `ValueError` for a precision that Accelerate leaves out without a word."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "fp16 was asked for on cpu, where Accelerate trains in float32 and does not say so. "
            "Use bf16=True, which works there, or leave fp16 out."
        )


_NATIVE = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""What torch calls the instructions of x86 and ARM that multiply in bfloat16."""

_ASKED_OF_OLDER = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""Who tells it of x86 in a torch that does not list them."""


def warn_of_slow_bfloat16(precision: str, device: torch.device) -> None:
    """Warn, once a process, of a bf16 that is many times slower than float32."""
    if precision == "bf16" and device.type == "cpu" and has_native_bfloat16() is False:
        _warn_once(
            "bf16=True on a processor that has no instructions for bfloat16 (avx512_bf16 or "
            "amx_bf16; on ARM bf16): it is computed by others, many times slower than float32. "
            "Leave --bf16 out, or where a configuration file sets it, add --bf16 false."
        )


def has_native_bfloat16() -> bool | None:
    """Whether this processor multiplies in bfloat16; `None` where torch does not tell."""
    machine = platform.machine().lower()
    x86, arm = machine in ("x86_64", "amd64"), machine in ("aarch64", "arm64")
    if not (x86 or arm):
        return None
    if hasattr(torch.cpu, "get_capabilities"):  # a newer torch
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in _NATIVE)
    if arm:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    asks = [getattr(torch.cpu, name, None) for name in _ASKED_OF_OLDER]
    return None if None in asks else any(ask() for ask in asks)  # type: ignore[misc]


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _check_own_weights(model: nn.Module, partner: nn.Module) -> None:
    own = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    shared = [own[id(p)] for p in partner.parameters() if id(p) in own]
    if shared:
        raise ValueError(
            f"The model shares {len(shared)} of its parameters with its partner, such as "
            f"{shared[0]}. The partner is frozen, and so they would be. Give the model weights "
            "of its own: build_student copies, and so does copy.deepcopy."
        )
