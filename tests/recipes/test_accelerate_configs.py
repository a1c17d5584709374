"""The configurations for `accelerate launch` are those that Accelerate reads and kdnlp accepts."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= config.num_machines
    assert config.num_processes % config.num_machines == 0


def test_the_sharded_configuration_is_the_one_that_is_accepted():
    config = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    assert config["fsdp_version"] == 2
    assert config["fsdp_cpu_ram_efficient_loading"] is False
    assert not config.get("fsdp_activation_checkpointing", False)
