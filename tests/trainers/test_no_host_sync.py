"""On a GPU a training step waits for nothing: what is logged stays there until it is logged."""

import pytest
import torch
from settings import TrainerRow, build_trainer, tiny_model
from transformers import TrainerCallback

from kdnlp.losses import HiddenLoss, LogitsLoss
from kdnlp.models.student import build_student

pytestmark = pytest.mark.gpu

ROWS = {
    "finetuning": TrainerRow("CompressionTrainer"),
    "distillation": TrainerRow("DistillationTrainer", {"final_temperature": 1.0}),
    "distillation-layers": TrainerRow(
        "DistillationTrainer", losses=lambda: {"logits": LogitsLoss(), "hidden": HiddenLoss()}
    ),
    "distillation-cached": TrainerRow("DistillationTrainer", {"cache_teacher_outputs": True}),
    "theseus": TrainerRow("TheseusTrainer"),
    "theseus-none": TrainerRow("TheseusTrainer", {"skipped_gradients": "none"}),
    "theseus-logits": TrainerRow("TheseusTrainer", losses=lambda: {"logits": LogitsLoss()}),
}
WARMUP = 2


class Watch(TrainerCallback):
    """Counts the steps that are done."""

    done = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.done = state.global_step


@pytest.mark.parametrize("name", ROWS)
def test_a_step_does_not_wait_for_the_gpu(name, tmp_path, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    teacher = tiny_model("bert", 4)
    trainer = build_trainer(
        ROWS[name],
        tmp_path,
        teacher,
        build_student(teacher, 2),
        use_cpu=False,
        max_steps=6,
        logging_steps=100,
        bf16=True,
    )
    watch, checked = Watch(), []
    trainer.add_callback(watch)
    step = trainer.training_step

    def without_waiting(*args, **kwargs):
        if watch.done < WARMUP:
            return step(*args, **kwargs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            checked.append(watch.done)

    monkeypatch.setattr(trainer, "training_step", without_waiting)
    trainer.train()
    assert checked == [2, 3, 4, 5]


def test_the_debug_mode_sees_a_wait():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    value = torch.ones(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            value.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
