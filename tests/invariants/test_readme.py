"""What the README says of the code is what the code says."""

from pathlib import Path

from kdnlp.cli import COMMANDS
from kdnlp.losses import LOSSES
from kdnlp.losses.overview import cite, losses_markdown

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_table_of_losses_is_the_one_that_the_code_makes():
    assert losses_markdown() in README, (
        "Put into the README what this prints: "
        'python -c "from kdnlp.losses.overview import losses_markdown; print(losses_markdown())"'
    )


def test_the_table_has_a_row_a_loss_with_its_paper_and_what_it_reads():
    rows = losses_markdown().splitlines()[2:]
    assert len(rows) == len(LOSSES)
    for row, (name, loss) in zip(rows, LOSSES.items(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0] == f"`{name}`"
        assert cells[2] == cite(loss.citation)
        assert set(loss().needs) == set(cells[3].partition(";")[0].split(", "))
        assert ("no teacher" in cells[3]) == (not loss.needs_teacher)


def test_every_command_is_named():
    assert all(f"`kdnlp {name}" in README for name in COMMANDS)


def test_it_can_be_read_in_one_go():
    assert len(README.splitlines()) < 170
    assert len(README.replace(losses_markdown(), "").splitlines()) < 150
