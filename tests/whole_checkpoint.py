"""A checkpoint with the files that a resume reads, as small as they can be."""

import json

import torch
from safetensors.torch import save_file


def write_checkpoint(folder, processes=1):
    """Write the files that `find_damage` looks at, whole."""
    folder.mkdir(parents=True)
    save_file({"weight": torch.ones(8)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.ones(8)}, folder / name)
    for i in range(processes):
        name = "rng_state.pth" if processes == 1 else f"rng_state_{i}.pth"
        torch.save({"cpu": torch.get_rng_state()}, folder / name)
    settings = {"processes": processes, "seed": 3}
    state = {"global_step": 1, "stateful_callbacks": {"kdnlp": settings}}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder
