"""`--losses` reads names, or JSON with the settings of each loss."""

import pytest

from kdnlp.cli.compress import resolve_losses
from kdnlp.losses import HiddenLoss, LogitsLoss


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
