"""The table of docs/scaling.md, compared with the prediction."""

import re

import pytest

from lhtrain.commands.estimate_speed import rounded
from lhtrain.compute.meshes import Hardware, best, meshes
from lhtrain.compute.rates import H100
from lhtrain.conf.compose import check_overrides
from tests.docs.page import ROOT, Page

PAGE = Page(ROOT / "docs" / "scaling.md")
SETTINGS = next(
    [line.replace("'", "").removeprefix("lhtrain estimate ").split() for _, line in block.commands()]
    for block in PAGE.blocks
    if block.language == "bash"
)
ROWS = [line.strip("| ").split(" | ") for line in PAGE.source if re.match(r"\| [\d,]+ \|", line)]


def shown(config, n_ranks):
    """What the table says of a number of GPUs."""
    chosen = best(meshes(config, n_ranks, Hardware(H100, 80 * 10**9)))
    if chosen is None:
        return "too many for the batch"
    if not chosen.fits:
        return "does not fit"
    speeds = " / ".join(rounded(stage.tokens_per_second / n_ranks) for stage in chosen.stages.values())
    return f"`{chosen.mesh()}`: {speeds}"


def test_the_table_goes_from_1_to_1024_gpus_for_each_run():
    assert [row[0] for row in ROWS][:: len(ROWS) - 1] == ["1", "1,024"]
    assert all(len(row) == 1 + len(SETTINGS) for row in ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("column", range(len(SETTINGS)))
def test_the_table_is_what_is_predicted(column):
    config = check_overrides(SETTINGS[column])
    printed = {int(row[0].replace(",", "")): row[column + 1] for row in ROWS}
    assert printed == {n_ranks: shown(config, n_ranks) for n_ranks in printed}
