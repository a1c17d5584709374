"""After mixed precision a model computes as its weights say, and half precision is never silent."""

import pytest
import torch
from settings import TRAINER_ROWS, arguments, build_trainer, tiny_batch, tiny_dataset, tiny_model
from transformers import AutoModelForSequenceClassification

from kdnlp.data.synthetic import build_tokenizer
from kdnlp.data.task import Task
from kdnlp.evaluation.evaluate import evaluate_model
from kdnlp.models.pretrained import load_finetuned, load_for_finetuning
from kdnlp.profiling.latency import describe_setting

TASK = Task("t", ("text",), ("no", "yes"), ("accuracy",))


def dtype_inside(model):
    seen = []
    hook = model.classifier.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.no_grad():
        logits = model.eval()(**tiny_batch()).logits
    hook.remove()
    return seen[0], logits


@pytest.mark.parametrize("row", ["finetuning", "distillation", "theseus"])
def test_models_time_and_export_in_the_precision_that_the_report_names(row, tmp_path):
    partner = tiny_model("bert", 4)
    trainer = build_trainer(TRAINER_ROWS[row], tmp_path, partner, bf16=True)
    trainer.train()
    trainer.save_model()
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    for model in (trainer.student, partner):
        assert dtype_inside(model)[0] == torch.float32
    assert describe_setting({"student": trainer.student}, 8).dtype == "float32"
    # To rounding: a file that is mapped from disk is aligned otherwise than memory is.
    assert torch.allclose(dtype_inside(trainer.student)[1], dtype_inside(exported)[1], atol=1e-6)


def test_training_itself_is_in_mixed_precision(tmp_path):
    trainer = build_trainer(TRAINER_ROWS["distillation"], tmp_path, bf16=True, max_steps=1)
    seen = []
    for name, model in (("student", trainer.student), ("teacher", trainer.teacher)):
        model.classifier.register_forward_hook(
            lambda *args, name=name: seen.append((name, args[2].dtype))
        )
    trainer.train()
    assert seen == [("student", torch.bfloat16), ("teacher", torch.bfloat16)]


@pytest.mark.parametrize("setting", ["bf16", "bf16_full_eval"])
def test_evaluating_a_model_leaves_its_forward_and_its_weights(setting, tmp_path):
    model = tiny_model("bert", 2)
    args = arguments("CompressionTrainer", tmp_path, **{setting: True})
    evaluate_model(model, args, {"validation": tiny_dataset(4)}, TASK, build_tokenizer())
    assert model.dtype == torch.float32
    assert dtype_inside(model)[0] == torch.float32


def test_evaluating_keeps_the_mode_of_every_part(tmp_path):
    model = tiny_model("bert", 2).train()
    model.bert.embeddings.eval()
    args = arguments("CompressionTrainer", tmp_path)
    evaluate_model(model, args, {"validation": tiny_dataset(4)}, TASK, build_tokenizer())
    assert model.training
    assert not model.bert.embeddings.training


@pytest.mark.parametrize("load", [load_finetuned, load_for_finetuning])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_checkpoint_is_loaded_to_train_in_float32(load, dtype, tmp_path):
    tiny_model("bert", 2).to(dtype).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path, TASK)[0].dtype == torch.float32
    assert load(tmp_path, TASK, dtype=dtype)[0].dtype == dtype


def test_a_trained_model_in_half_precision_is_warned_of(tmp_path, caplog):
    partner = tiny_model("bert", 4).bfloat16()
    with caplog.at_level("WARNING", logger="kdnlp"):
        build_trainer(TRAINER_ROWS["distillation"], tmp_path, partner)
    assert "torch.bfloat16: most updates" in caplog.text


def test_logged_components_do_not_stop_growing_in_half_precision(tmp_path):
    partner = tiny_model("bert", 4).bfloat16()
    trainer = build_trainer(
        TRAINER_ROWS["finetuning"], tmp_path, partner, max_steps=600, logging_steps=600
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss_task" in entry)
    assert entry["loss_task"] == pytest.approx(entry["loss"], rel=1e-2)
