"""Every command of the pages that a reader follows: run, or, where a block is marked, checked."""

import pytest

from tests.docs.page import guides
from tests.docs.reader import SMALL, TEXT, Reader

pytestmark = pytest.mark.slow
PAGES = {page.name: page for page in guides() if any(block.is_shell for block in page.blocks)}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("finished"))
    done = reader.lhtrain([*SMALL, *TEXT, "run.dir=runs/mine"])
    assert done.returncode == 0, done.stderr
    return reader.folder / "runs" / "mine"


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_the_commands_of_a_page_do_what_it_says(page, finished_run, tmp_path):
    Reader(tmp_path / "reader", finished_run).follow(page)
