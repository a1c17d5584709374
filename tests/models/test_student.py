import pytest
import torch
from settings import ARCHITECTURES, tiny_batch, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig

from kdnlp.models.layers import find_layers
from kdnlp.models.student import build_student, select_layers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_keeps_embeddings_head_and_the_chosen_blocks(name):
    stack = ARCHITECTURES[name].stack
    teacher = tiny_model(name, 4)
    student = build_student(teacher, 2, stack=stack)
    path = find_layers(teacher, stack).path
    teacher_state = teacher.state_dict()
    for key, tensor in student.state_dict().items():
        assert torch.equal(tensor, teacher_state[key]), key
    assert len(find_layers(student, stack).layers) == 2
    assert any(key.startswith(path) for key in teacher_state)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_blocks_copied_is_the_teacher(name):
    teacher = tiny_model(name, 3)
    student = build_student(teacher, 3, stack=ARCHITECTURES[name].stack).eval()
    batch = tiny_batch()
    del batch["labels"]
    with torch.no_grad():
        assert torch.equal(student(**batch)[0], teacher(**batch)[0])


@pytest.mark.parametrize(
    ("init", "expected"),
    [("first", [0, 1]), ("last", [2, 3]), ("spaced", [0, 2]), ([3, 1], [3, 1])],
)
def test_the_copied_blocks_are_the_ones_asked_for(init, expected):
    teacher = tiny_model("bert", 4)
    student = build_student(teacher, 2, init_layers=init)
    for ours, theirs in enumerate(expected):
        got = student.bert.encoder.layer[ours].state_dict()
        for key, tensor in teacher.bert.encoder.layer[theirs].state_dict().items():
            assert torch.equal(got[key], tensor)


def test_label_names_problem_type_and_dtype_are_carried():
    teacher = tiny_model("bert", 3, problem_type="single_label_classification").bfloat16()
    student = build_student(teacher, 1)
    assert student.config.id2label == teacher.config.id2label
    assert student.config.problem_type == "single_label_classification"
    assert student.dtype == torch.bfloat16


def test_what_only_the_first_block_has_is_not_lost():
    teacher = tiny_model("t5-encoder", 4)
    student = build_student(teacher, init_layers=[2, 3], stack="encoder")
    blocks = [find_layers(m, "encoder").layers[0] for m in (teacher, student)]
    bias = [b.layer[0].SelfAttention.relative_attention_bias.weight for b in blocks]
    assert torch.equal(*bias)


def test_lists_with_an_entry_a_block_follow_the_blocks():
    teacher = tiny_model("modernbert", 4)
    student = build_student(teacher, init_layers=[1, 2])
    assert student.config.layer_types == [teacher.config.layer_types[i] for i in (1, 2)]


def test_another_width_starts_fresh_and_says_so(caplog):
    teacher = tiny_model("bert", 4)
    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=12,
    )
    with caplog.at_level("WARNING", logger="kdnlp"):
        student = build_student(teacher, config=config)
    assert "could not be copied" in caplog.text
    assert student.config.hidden_size == 8
    assert student.config.id2label == teacher.config.id2label


def test_the_same_width_copies_what_fits():
    teacher = tiny_model("bert", 4)
    config = BertConfig(
        **{**teacher.config.to_dict(), "intermediate_size": 32, "num_hidden_layers": 2}
    )
    student = build_student(teacher, config=config)
    ours, theirs = (m.bert.encoder.layer[0].attention.self.query.weight for m in (student, teacher))
    assert torch.equal(ours, theirs)
    assert student.bert.encoder.layer[0].intermediate.dense.out_features == 32


@pytest.mark.parametrize("num_layers", [0, -1, 5, None])
def test_a_count_out_of_range_is_refused(num_layers):
    with pytest.raises(ValueError, match="between 1 and the teacher's 4"):
        select_layers(num_layers, 4, "first")


@pytest.mark.parametrize("init", [[0, 4], [-1], [0, 1, 2]])
def test_indices_that_do_not_exist_or_disagree_are_refused(init):
    with pytest.raises(ValueError, match="init_layers"):
        select_layers(len(init) if max(init) > 3 or min(init) < 0 else 2, 4, init)


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match='"first", "last", "spaced"'):
        select_layers(2, 4, "middle")


def test_another_family_or_vocabulary_is_refused():
    teacher = tiny_model("bert", 2)
    with pytest.raises(ValueError, match="family"):
        build_student(teacher, config=AutoConfig.for_model("roberta"))
    with pytest.raises(ValueError, match="vocab_size"):
        build_student(teacher, config=BertConfig(vocab_size=99))


def test_how_the_teacher_generates_is_carried():
    teacher = tiny_model("llama", 4)
    causal = AutoModelForCausalLM.from_config(teacher.config)
    causal.generation_config.update(num_beams=4, max_length=33)
    student = build_student(causal, 2)
    assert (student.generation_config.num_beams, student.generation_config.max_length) == (4, 33)
    assert student.generation_config is not causal.generation_config
