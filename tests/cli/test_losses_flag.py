"""`--losses` reads names, or JSON with the settings of each loss."""

import json

import pytest

from kdnlp.cli.loss_settings import resolve_losses
from kdnlp.losses import LOSSES, HiddenLoss, LogitsLoss


def test_names_are_read_with_default_settings():
    losses = resolve_losses("logits, hidden")
    assert [type(loss) for loss in losses.values()] == [LogitsLoss, HiddenLoss]
    assert resolve_losses(None) is None


def test_settings_are_read_from_json():
    losses = resolve_losses('{"hidden": {"layer_map": {"1": 2}, "projection": true}, "logits": {}}')
    assert list(losses) == ["hidden", "logits"]
    assert losses["hidden"].config() == {"layer_map": {"1": 2}, "projection": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logit, hiden", r"names logit, hiden; expected names out of logits"),
        ('{"hiden": {}}', r"names hiden; expected"),
        (
            '{"hidden": {"layers": 3}}',
            r"hidden the settings layers, .*it has layer_map, projection",
        ),
        ('{"hidden": [1]}', r"must read like logits,hidden or"),
        ('{"hidden"', r"must read like logits,hidden or"),
        ('{"attention": {"distance": "l1"}}', r'distance must be "kl" or "mse"'),
    ],
)
def test_a_misspelt_loss_or_setting_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        resolve_losses(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden": {"layer_map": 3}}', r"gives hidden layer_map=3; expected str \| .*Mapping"),
        ('{"hidden": {"layer_map": {"one": 3}}}', r'hidden layer_map=\{"one": 3\}; expected'),
        ('{"hidden": {"layer_map": {"1": 2.5}}}', r"hidden layer_map=.*; expected"),
        ('{"hidden": {"projection": "no"}}', r'hidden projection="no"; expected bool \| None'),
        ('{"relation": {"relation_heads": "4"}}', r'relation_heads="4"; expected int \| None'),
        ('{"relation": {"relation_heads": true}}', r"relation_heads=true; expected int"),
        ('{"relation": {"relations": [1]}}', r"relations=\[1\]; expected .*Sequence\[str\]"),
        (
            '{"relation": {"relation_heads": 0}}',
            r"relation the settings .*must be at least 1",
        ),
        ('{"logits": {"temperature": "3"}}', r'logits temperature="3"; expected float \| None'),
        ('{"logits": {"temperature": -1}}', r"gives logits the settings .*above 0"),
        ('{"decoupled": {"alpha": null}}', r"decoupled alpha=null; expected float"),
        ('{"attention": {"distance": 1}}', r"attention distance=1; expected Literal"),
        ('{"logits_mse": {"args": 1}}', r"logits_mse the settings args, .*it has none"),
    ],
)
def test_a_setting_of_another_type_is_refused_before_anything_is_loaded(text, message):
    with pytest.raises(ValueError, match=message):
        resolve_losses(text)


@pytest.mark.parametrize("name", LOSSES)
def test_no_setting_that_a_loss_says_of_itself_is_refused(name):
    settings = LOSSES[name]().config()
    assert resolve_losses(json.dumps({name: settings}))[name].config() == settings


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("logits", {"temperature": 3}),
        ("logits", {"temperature": None}),
        ("hidden", {"layer_map": {"0": 0, "2": 4}}),
        ("relation", {"relations": "value", "relation_heads": 4}),
        ("relation", {"relations": ["query", "key"]}),
        ("attention", {"distance": "mse"}),
    ],
)
def test_values_of_the_right_type_are_taken(name, settings):
    assert type(resolve_losses(json.dumps({name: settings}))[name]) is LOSSES[name]
