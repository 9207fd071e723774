"""Groups of options: their headings in --help, and what a command gets of them."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer import Option
from typer.testing import CliRunner

from ntk_analysis.cli.app import app
from ntk_analysis.cli.groups import Group, GroupedCommand, grouped
from ntk_analysis.cli.options import ClusterOptions


@dataclass(frozen=True)
class Colours(Group, title="Colours"):
    """Two options."""

    back: Annotated[str, Option(help="Colour of the paper.")] = "white"
    line_width: Annotated[float, Option("--width", help="Width of lines.", min=0)] = 1.0


def draw(name: str, *, seed: int = 0, colours: Colours) -> None:
    """Draws."""
    print(name, seed, colours, colours.given())


def test_a_command_gets_its_groups_and_what_was_given():
    small = typer.Typer(rich_markup_mode=None)
    small.command(cls=GroupedCommand)(grouped(draw))
    told = CliRunner().invoke(small, ["x", "--width", "2", "--seed", "3"])
    assert told.output == f"x 3 {Colours(line_width=2.0)} {{'line_width': 2.0}}\n"
    assert CliRunner().invoke(small, ["x"]).output == f"x 0 {Colours()} {{}}\n"
    refused = CliRunner().invoke(small, ["x", "--width", "-1"])
    assert refused.exit_code == 2
    assert "--width" in refused.output


HEADINGS = {
    "kernel": "Arguments, Options, Network, Images, Several processes or machines",
    "compare": "Arguments, Options, Network",
    "empirical": "Arguments, Options, Kernel, Network drawn on --images, Images, Plan, Several processes or machines",
    "train": "Options, Network, Steps",
    "sweep": "Options, Network, Steps, Several processes or machines",
    "memory": "Arguments, Options, Sizes for MODEL",
}


@pytest.mark.parametrize("command", HEADINGS)
def test_help_has_a_heading_for_each_group(command):
    told = CliRunner().invoke(app, [command, "--help"]).output
    found = [line[:-1] for line in told.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert ", ".join(found) == HEADINGS[command]
    options = [line.split()[0] for line in told.splitlines() if line.startswith("  --")]
    assert len(options) == len(set(options))


def test_two_kinds_of_workers_contradict_each_other():
    assert not ClusterOptions().given()
    with pytest.raises(ValueError, match="give one of them"):
        ClusterOptions(workers=2, scheduler="tcp://host:8786")
    with pytest.raises(ValueError, match="expected an address"):
        ClusterOptions(scheduler="host")
