"""An ensemble answers with the mean of what its members say, each about its own inputs."""

import copy
import re

import numpy as np
import pytest
import torch
import transformers
from scipy.special import expit, log_softmax, logit, softmax
from scipy.stats import entropy
from settings import LABELS, NO_DROPOUT, TrainerRow, build_trainer, tiny_batch, tiny_model
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import ModelOutput

from kdnlp.data.task import Task
from kdnlp.losses import LogitsLoss
from kdnlp.models.alignment import check_inputs, input_names
from kdnlp.models.averaging import (
    entropy_weights,
    mean_logits,
    mean_sigmoid,
    mean_softmax,
    sigmoid_entropy,
    softmax_entropy,
)
from kdnlp.models.ensemble import TeacherEnsemble
from kdnlp.models.pretrained import load_ensemble, load_finetuned
from kdnlp.models.student import build_student

THREE = {0: "cat", 1: "cow", 2: "dog"}
FAMILIES = ("bert", "roberta", "distilbert")


def model(name="bert", seed=0, labels=LABELS, **config):
    """A tiny classifier whose answers are far from uniform."""
    config = {"label2id": {v: k for k, v in labels.items()}, "id2label": dict(labels), **config}
    tiny = tiny_model(name, 2, seed=seed, **config)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.mul_(2)
    return tiny


def batch(**more):
    plain = tiny_batch()
    return {"input_ids": plain["input_ids"], "attention_mask": plain["attention_mask"], **more}


@torch.no_grad()
def answers(teacher, inputs=None, **more):
    return teacher(**(inputs or batch()), **more)["logits"].numpy()


def random_logits(shape=(3, 5, 4), seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(scale=3, size=shape))


def column(weights, dims=3):
    return torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (dims - 1))


# The means, against numpy and scipy.


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.3, 0.0)])
@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 2, 6, 3)])
def test_a_softmax_of_the_mean_is_the_mean_distribution(shape, weights):
    logits = random_logits(shape)
    expected = np.einsum("k,k...->...", weights, softmax(logits.numpy(), axis=-1))
    got = mean_softmax(logits, column(weights, len(shape)))
    np.testing.assert_allclose(softmax(got.numpy(), axis=-1), expected, rtol=1e-12)
    np.testing.assert_allclose(got.numpy(), np.log(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.7, 0.3, 0.0)])
def test_a_sigmoid_of_the_mean_is_the_mean_probability_of_each_label(weights):
    logits = random_logits()
    expected = np.einsum("k,k...->...", weights, expit(logits.numpy()))
    got = mean_sigmoid(logits, column(weights)).numpy()
    np.testing.assert_allclose(got, logit(expected), rtol=1e-9)


def test_the_mean_of_logits_is_the_geometric_mean_of_the_distributions():
    logits, weights = random_logits(), (0.5, 0.3, 0.2)
    geometric = np.exp(np.einsum("k,k...->...", weights, log_softmax(logits.numpy(), axis=-1)))
    got = mean_logits(logits, column(weights)).numpy()
    expected = geometric / geometric.sum(-1, keepdims=True)
    np.testing.assert_allclose(softmax(got, axis=-1), expected, rtol=1e-12)


def test_probabilities_near_0_and_1_survive_the_mean():
    extreme = torch.tensor([[[80.0, -80.0]], [[90.0, -90.0]]])
    half = torch.tensor([0.5, 0.5]).view(2, 1, 1)
    for mean in (mean_softmax, mean_sigmoid):
        assert torch.isfinite(mean(extreme, half)).all()
    got = mean_sigmoid(extreme, half)
    # logit((sigmoid(80) + sigmoid(90)) / 2), of which double precision keeps nothing but 1.0.
    assert got[0, 0].item() == pytest.approx(80 + np.log(2), abs=1e-3)


def test_an_impossible_label_stays_impossible_and_makes_no_nan():
    logits = torch.tensor([[[1.0, 0.0, -torch.inf]], [[0.0, 2.0, -torch.inf]]])
    half = torch.tensor([0.5, 0.5]).view(2, 1, 1)
    assert mean_softmax(logits, half)[0, 2] == -torch.inf
    assert torch.isfinite(mean_softmax(logits, half)[0, :2]).all()
    only_first = mean_logits(
        torch.stack([torch.zeros(1, 2), torch.full((1, 2), -torch.inf)]),
        torch.tensor([1.0, 0.0]).view(2, 1, 1),
    )
    assert torch.equal(only_first, torch.zeros(1, 2))


def test_entropies_are_scipys_and_sure_members_weigh_more():
    logits = random_logits()
    expected = entropy(softmax(logits.numpy(), axis=-1), axis=-1)
    got = softmax_entropy(logits)[..., 0].numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    p = expit(logits.numpy())
    expected = entropy(np.stack([p, 1 - p]), axis=0).sum(-1)
    np.testing.assert_allclose(sigmoid_entropy(logits)[..., 0].numpy(), expected, rtol=1e-9)
    weights = entropy_weights(softmax_entropy(logits))[..., 0].numpy()
    np.testing.assert_allclose(weights, np.exp(-got) / np.exp(-got).sum(0), rtol=1e-9)
    sure = softmax_entropy(torch.tensor([[[1e4, -1e4]], [[0.0, 0.0]]]))
    np.testing.assert_allclose(entropy_weights(sure).flatten(), [2 / 3, 1 / 3], rtol=1e-6)


# The ensemble, against its members.


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("config", [{}, {"problem_type": "multi_label_classification"}])
def test_members_of_three_families_are_averaged(config, average):
    members = [model(name, seed, THREE, **config) for seed, name in enumerate(FAMILIES)]
    each = np.stack([answers(member) for member in members]).astype(np.float64)
    ensemble = TeacherEnsemble(members, [1, 2, 1], average=average)
    got = answers(ensemble, batch(token_type_ids=torch.zeros(3, 7, dtype=torch.long)))
    weighted = np.einsum("k,k...->...", [0.25, 0.5, 0.25], each)
    if average == "probabilities" and config:
        weighted = logit(np.einsum("k,k...->...", [0.25, 0.5, 0.25], expit(each)))
    elif average == "probabilities":
        weighted = np.log(np.einsum("k,k...->...", [0.25, 0.5, 0.25], softmax(each, axis=-1)))
    np.testing.assert_allclose(got, weighted, rtol=1e-4, atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 0.1


@pytest.mark.parametrize("weights", [None, [3.0], "entropy"])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_single_member_is_passed_on_exactly(average, weights):
    member = model()
    ensemble = TeacherEnsemble([member], weights, average=average)
    assert np.array_equal(answers(ensemble), answers(member))


def test_regression_is_the_plain_mean_whatever_the_average():
    members = [model(seed=seed, labels={0: "score"}) for seed in (0, 1)]
    expected = np.mean([answers(member) for member in members], axis=0)
    for average in ("probabilities", "logits"):
        got = answers(TeacherEnsemble(members, average=average))
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"entropy.*needs distributions, got a regression"):
        TeacherEnsemble(members, "entropy")


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_entropy_weighs_members_example_by_example(average):
    members = [model(seed=seed, labels=THREE) for seed in (0, 1)]
    each = np.stack([answers(member) for member in members]).astype(np.float64)
    distributions = softmax(each, axis=-1)
    confidence = np.exp(-entropy(distributions, axis=-1))
    weights = (confidence / confidence.sum(0))[..., None]
    assert weights[0].max() - weights[0].min() > 0.01
    expected = (weights * each).sum(0)
    if average == "probabilities":
        expected = np.log((weights * distributions).sum(0))
    got = answers(TeacherEnsemble(members, "entropy", average=average))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_metrics_weigh_members_in_proportion():
    members = [model(seed=seed) for seed in (0, 1)]
    by_metric = answers(TeacherEnsemble(members, "by_metric", metrics=[0.9, 0.3]))
    assert np.array_equal(by_metric, answers(TeacherEnsemble(members, [0.75, 0.25])))
    assert np.abs(by_metric - answers(TeacherEnsemble(members))).max() > 0.01


def test_the_temperature_softens_the_mean_of_probabilities_after_averaging():
    """What the docstring says of T > 1, and that the mean of logits has no such difference."""
    members = [model(seed=seed, labels=THREE) for seed in (0, 1)]
    each = np.stack([answers(member) for member in members]).astype(np.float64)
    softened = softmax(each / 4, axis=-1).mean(0)
    of_logits = softmax(answers(TeacherEnsemble(members, average="logits")) / 4, axis=-1)
    geometric = np.exp(log_softmax(each / 4, axis=-1).mean(0))
    expected = geometric / geometric.sum(-1, keepdims=True)
    np.testing.assert_allclose(of_logits, expected, rtol=1e-4)
    powered = softmax(each, axis=-1).mean(0) ** 0.25
    got = softmax(answers(TeacherEnsemble(members)) / 4, axis=-1)
    np.testing.assert_allclose(got, powered / powered.sum(-1, keepdims=True), rtol=1e-4)
    assert np.abs(got - softened).max() > 0.005


def test_labels_that_a_member_numbers_otherwise_are_read_by_name():
    first, second = model(labels=THREE), model(seed=1, labels=THREE)
    order = [2, 0, 1]
    renumbered = copy.deepcopy(second)
    with torch.no_grad():
        renumbered.classifier.weight.copy_(second.classifier.weight[order])
        renumbered.classifier.bias.copy_(second.classifier.bias[order])
    renumbered.config.id2label = {i: THREE[old].upper() for i, old in enumerate(order)}
    renumbered.config.label2id = {v: k for k, v in renumbered.config.id2label.items()}
    expected = answers(TeacherEnsemble([first, second]))
    ensemble = TeacherEnsemble([first, renumbered])
    np.testing.assert_allclose(answers(ensemble), expected, rtol=1e-5)
    assert ensemble.config.id2label == THREE
    flipped = TeacherEnsemble([renumbered, first])
    assert flipped.config.id2label == renumbered.config.id2label
    np.testing.assert_allclose(answers(flipped), expected[:, order], rtol=1e-5)


def question_answering(seed):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "bert", vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=24,
        num_hidden_layers=1, initializer_range=1.0,
    )  # fmt: skip
    return transformers.BertForQuestionAnswering(config).eval()


@torch.no_grad()
def test_answers_are_averaged_over_the_positions_that_hold_text():
    members = [question_answering(seed) for seed in (0, 1)]
    inputs = batch()
    inputs["attention_mask"][0, 4:] = 0
    outputs = TeacherEnsemble(members)(**inputs)
    for name in ("start_logits", "end_logits"):
        each = np.stack([member(**inputs)[name].numpy() for member in members])
        for row, length in enumerate((4, 7, 7)):
            expected = softmax(each[:, row, :length], axis=-1).mean(0)
            got = softmax(outputs[name][row].numpy())
            np.testing.assert_allclose(got[:length], expected, rtol=1e-4)
            assert got[length:].sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForMaskedLM"])
def test_tokens_are_averaged_position_by_position(head):
    members = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = question_answering(0).config
        config.id2label = THREE
        members.append(getattr(transformers, head)(config).eval())
    each = np.stack([member(**batch())["logits"].numpy() for member in members])
    got = answers(TeacherEnsemble(members))
    np.testing.assert_allclose(
        softmax(got, axis=-1), softmax(each, axis=-1).mean(0), rtol=1e-4, atol=1e-7
    )
    with pytest.raises(ValueError, match="no loss of its own"):
        TeacherEnsemble(members)(**batch(), labels=torch.zeros(3, 7, dtype=torch.long))


def test_members_with_other_columns_each_read_their_own():
    first, second = model(), model("roberta", 1, vocab_size=50)
    ensemble = TeacherEnsemble([first, second], prefixes=["", "roberta_"])
    theirs = {
        name: tensor + 1 if name == "input_ids" else tensor for name, tensor in batch().items()
    }
    given = {**batch(), **{f"roberta_{name}": tensor for name, tensor in theirs.items()}}
    each = np.stack([answers(first), answers(second, theirs)])
    expected = np.log(softmax(each, axis=-1).mean(0))
    np.testing.assert_allclose(answers(ensemble, given), expected, rtol=1e-4, atol=1e-6)
    assert {"input_ids", "token_type_ids", "roberta_input_ids"} <= input_names(ensemble)
    assert not {"labels", "roberta_labels"} & input_names(ensemble)
    assert ensemble.config.vocab_size == 40
    other_way = TeacherEnsemble([second, first], prefixes=["roberta_", ""])
    assert other_way.config.vocab_size == 40
    with pytest.raises(ValueError, match=r"teacher_roberta_input_ids to the data"):
        ensemble(**batch())


def test_a_column_that_no_member_reads_is_nothing_the_student_lacks():
    student = tiny_model("distilbert", 1)
    columns = ["input_ids", "attention_mask", "token_type_ids", "labels"]
    check_inputs(TeacherEnsemble([model("distilbert")]), student, columns)
    with pytest.raises(ValueError, match="token_type_ids, which TeacherEnsemble reads"):
        check_inputs(TeacherEnsemble([model("distilbert"), model("bert")]), student, columns)


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, torch.tensor([0, 2, 1])),
        ({"problem_type": "multi_label_classification"}, torch.eye(3)),
        ({"problem_type": "regression", "id2label": {0: "x"}}, torch.tensor([0.1, 2.0, -1.0])),
    ],
    ids=["single", "multi", "regression"],
)
def test_the_loss_of_one_member_is_the_one_that_it_computes_itself(config, labels):
    member = model(**{"labels": THREE, **config})
    with torch.no_grad():
        expected = member(**batch(), labels=labels)
        got = TeacherEnsemble([member])(**batch(), labels=labels)
    assert got.loss.item() == pytest.approx(expected.loss.item(), rel=1e-6)


# What is refused.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": [1.0]}, "Expected 2 finite weights"),
        ({"weights": [1.0, -0.5]}, "at least 0"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [float("nan"), 1.0]}, "finite"),
        ({"weights": [float("inf"), 1.0]}, "finite"),
        ({"weights": "by_metric"}, "metrics go with"),
        ({"weights": "by_metric", "metrics": [0.5]}, "one a member"),
        ({"weights": "by_metric", "metrics": [0.5, -0.1]}, "opposite of a member's answers"),
        ({"metrics": [0.5, 0.5]}, "One of the two would be ignored"),
        ({"weights": "accuracy"}, "got 'accuracy'"),
        ({"average": "median"}, "got 'median'"),
        ({"prefixes": [""]}, "a prefix for each of the 2 members"),
        ({"prefixes": "ab"}, "a prefix for each of the 2 members"),
    ],
)
def test_settings_that_would_average_wrongly_are_refused(settings, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        TeacherEnsemble([model(), model(seed=1)], **settings)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (list, "got none"),
        (lambda: [model(), model(vocab_size=50)], "vocabularies of [40, 50] token ids"),
        (lambda: [model(), model(labels=THREE)], "Member 1 (BertForSequenceClassification)"),
        (lambda: [model(), model(labels={0: "good", 1: "bad"})], "Labels are matched by name"),
        (lambda: [model(), model(labels={0: "score"})], "single_label_classification, regression"),
        (lambda: [model(), question_answering(0)], "no mean"),
    ],
    ids=["none", "vocabulary", "more labels", "other labels", "regression", "question answering"],
)  # fmt: skip
def test_members_whose_answers_have_no_mean_are_refused(build, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        TeacherEnsemble(build())


def test_answers_per_token_of_members_with_other_tokenizers_are_refused():
    members = [question_answering(0), question_answering(1)]
    with pytest.raises(ValueError, match="predicts per token"):
        TeacherEnsemble(members, prefixes=["", "other_"])


@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
def test_layers_cannot_be_asked_for(flag):
    ensemble = TeacherEnsemble([model()])
    with pytest.raises(ValueError, match=f"asks for {flag}.*has no layers"):
        ensemble(**batch(), **{flag: True})
    assert np.array_equal(answers(ensemble, **{flag: False}), answers(ensemble))


# In a trainer, and from folders.


def test_a_trainer_freezes_and_teaches_by_the_whole_ensemble(tmp_path):
    members = [tiny_model("bert", 2, seed=s, **NO_DROPOUT).train() for s in (0, 1)]
    ensemble = TeacherEnsemble(members, "entropy")
    seen = []

    class Recording(LogitsLoss):
        def forward(self, student, teacher, batch):
            seen.append((teacher["logits"], dict(batch)))
            return super().forward(student, teacher, batch)

    row = TrainerRow("DistillationTrainer", losses=lambda: {"logits": Recording()})
    trainer = build_trainer(row, tmp_path, ensemble, build_student(members[0], 1), max_steps=2)
    before = copy.deepcopy(ensemble.state_dict())
    trainer.train()
    assert not any(p.requires_grad for p in ensemble.parameters())
    assert not any(module.training for module in ensemble.modules())
    assert all(torch.equal(v, before[k]) for k, v in ensemble.state_dict().items())
    assert len(seen) == 2
    for logits, inputs in seen:
        inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
        np.testing.assert_allclose(logits, answers(ensemble, inputs), rtol=1e-5)
    assert type(trainer.student).__name__ == "BertForSequenceClassification"


TASK = Task("pair", ("text",), ("no", "yes"), ("accuracy",))


def saved(folder, tiny, words=("a", "b")):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>"
    )
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_ensemble_is_loaded_from_folders(tmp_path):
    members = [model(seed=seed) for seed in (0, 1)]
    paths = [saved(tmp_path / str(i), member) for i, member in enumerate(members)]
    ensemble, tokenizer = load_ensemble(paths, TASK, [1, 3])
    assert np.array_equal(answers(ensemble), answers(TeacherEnsemble(members, [1, 3])))
    assert not ensemble.training
    assert tokenizer("a b")["input_ids"] == [2, 3]


def test_members_with_as_many_other_words_are_not_taken_for_one_vocabulary(tmp_path):
    paths = [saved(tmp_path / "x", model()), saved(tmp_path / "y", model(), ("b", "a"))]
    with pytest.raises(ValueError, match=r"one vocabulary, got another in .*y than in .*x"):
        load_ensemble(paths, TASK)


def test_half_precision_members_are_averaged_in_float32_and_stay_as_they_are(tmp_path):
    paths = [saved(tmp_path / str(seed), model(seed=seed)) for seed in (0, 1)]
    ensemble, _ = load_ensemble(paths, TASK, dtype=torch.bfloat16)
    each = [
        AutoModelForSequenceClassification.from_pretrained(p, dtype=torch.bfloat16) for p in paths
    ]
    outputs = [member.eval()(**batch())["logits"] for member in each]
    assert {tensor.dtype for tensor in outputs} == {torch.bfloat16}
    expected = np.log(softmax([x.float().detach().numpy() for x in outputs], axis=-1).mean(0))
    got = ensemble(**batch())["logits"]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.detach(), expected, rtol=1e-5, atol=1e-6)
    assert {p.dtype for p in ensemble.parameters()} == {torch.bfloat16}


def test_a_half_precision_teacher_teaches_a_student_in_float32(tmp_path):
    big, _ = load_finetuned(saved(tmp_path / "big", model()), TASK, dtype=torch.bfloat16)
    assert {p.dtype for p in big.parameters()} == {torch.bfloat16}
    student = tiny_model("bert", 1)
    row = TrainerRow("DistillationTrainer", {"loss_weights": "logits=1"})
    trainer = build_trainer(row, tmp_path / "run", big, student, max_steps=4)
    start = copy.deepcopy(student.state_dict())
    trainer.train()
    assert {p.dtype for p in big.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert not torch.equal(student.classifier.weight, start["classifier.weight"])
    losses = [x["loss_logits"] for x in trainer.state.log_history if "loss_logits" in x]
    assert np.isfinite(losses).all()


def test_how_a_large_teacher_is_loaded_reaches_transformers(tmp_path, monkeypatch):
    folder, seen = saved(tmp_path, model()), {}
    original = AutoModelForSequenceClassification.from_pretrained

    def record(*args, **kwargs):
        seen.update(kwargs)
        kwargs.pop("quantization_config")  # needs a package that the suite does without
        return original(*args, **kwargs)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", record)
    how = {"quantization_config": object(), "device_map": "cpu", "dtype": torch.float16}
    teacher, _ = load_finetuned(folder, TASK, **how)
    assert {name: seen[name] for name in how} == how
    assert teacher.device.type == "cpu"
    assert teacher.dtype == torch.float16


def test_a_member_that_is_partly_on_the_disk_stays_there_and_teaches(tmp_path):
    paths = [saved(tmp_path / str(seed), model(seed=seed)) for seed in (0, 1)]
    where = {"bert": "disk", "classifier": "cpu"}
    spread, _ = load_finetuned(paths[0], TASK, device_map=where, offload_folder=tmp_path / "disk")
    assert {p.device.type for p in spread.parameters()} == {"meta", "cpu"}
    plain = [load_finetuned(path, TASK)[0] for path in paths]
    ensemble = TeacherEnsemble([spread, plain[1]])
    row = TrainerRow("DistillationTrainer")
    build_trainer(row, tmp_path / "run", ensemble, tiny_model("bert", 1), max_steps=1).train()
    assert {p.device.type for p in spread.parameters()} == {"meta", "cpu"}
    np.testing.assert_allclose(answers(ensemble), answers(TeacherEnsemble(plain)), rtol=1e-5)
    moved = TeacherEnsemble([plain[0]]).to("meta")
    assert {p.device.type for p in (*moved.parameters(), *moved.buffers())} == {"meta"}


def test_a_loss_reads_the_ensemble_as_it_reads_one_teacher():
    teacher, student = TeacherEnsemble([model(), model(seed=1)]), model(seed=2)
    outputs = [m(**batch()) for m in (student, teacher)]
    loss = LogitsLoss()
    value = loss(outputs[0], outputs[1], {})
    assert isinstance(outputs[1], ModelOutput)
    p, q = (softmax(x["logits"].detach().numpy(), axis=-1) for x in reversed(outputs))
    assert value.item() == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
