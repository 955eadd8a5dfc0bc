"""The reader finds what is wrong with a page."""

import re

import pytest

from lhtrain.commands.table import COMMANDS
from tests.docs.page import Page
from tests.docs.reader import SMALL, Reader


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("pages") / "reader")


@pytest.fixture
def follow(reader, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.docs.page.ROOT", tmp_path)

    def follow(text):
        (tmp_path / "page.md").write_text(text)
        reader.follow(Page(tmp_path / "page.md"))

    return follow


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("lhtrain model.n_layer=2", "model.n_layer=2: no such key"),
        ("lhtrain -m optim.lr=1e-3,fast", "optim.lr=fast"),
        ("lhtrain --config-dirs my", "no such option"),
        ("lhtrain slurm resubmit runs/mine", "resubmit"),
        ("lhtrain data prepare data=files data.path=dump.jsonl 'data.filters=[score]'", "data.filters=score"),
        ("lhtrain resume runs/mine | head", "no {'|'}"),
        ("torchrun --nproc-per-node=8 -m lhtrain parallel.cp=3", "parallel.cp=3"),
        ("make trian", "no target trian"),
        ('make train ARGS="run.step=3"', "run.step=3: no such key"),
        ("pip install 'lhtrain[wandbb]'", "no extras {'wandbb'}"),
        ("python scripts/soak.py --killings 3", "no option --killings"),
        ("python scripts/bench/train.py --steps 2 model.seq_lens=3", "model.seq_lens=3: no such key"),
    ],
)
def test_a_wrong_command_of_a_marked_block(follow, command, message):
    with pytest.raises(AssertionError) as caught:
        follow(f"text\n\n<!-- gpu -->\n```bash\nls\n{command}\n```\n")
    assert message in str(caught.value) and f"page.md:6: {command}" in str(caught.value)


@pytest.mark.parametrize(
    "command",
    ["frobnicate", "torchrun --nproc-per-node=2 -m lhtrain", "python scripts/soak.py", "ls nowhere"],
)
def test_a_command_of_a_block_without_a_mark_must_run(follow, command):
    with pytest.raises(AssertionError, match=r"page.md:2"):
        follow(f"```bash\n{command}\n```\n")


def test_settings_that_make_a_run_small(reader):
    words = (
        "run.dir=a run.steps=400 lighthouse.budget=1536 stages.lighthouse.steps=300 optim.lr=1 data=stdlib"
    )
    out = reader._shrunk(words.split())
    assert out[:2] == ["run.dir=a", "optim.lr=1"] and {*SMALL, "data=text"} <= set(out)
    assert not {"run.steps=400", "lighthouse.budget=1536", "stages.lighthouse.steps=300"} & set(out)
    assert "data=text" not in reader._shrunk(["data=prepared", "data.path=edu"])
    assert reader._shrunk(["extend", "runs/b", "steps=+2000"]) == ["extend", "runs/b", "steps=+2"]


@pytest.mark.slow
def test_output_that_a_page_shows(follow):
    shown = "$ lhtrain optim.lr=fast\nlhtrain: 1 problem in the configuration; nothing was started.\n"
    follow(f"```console\n{shown}  optim.lr=fast: must be a number\n```\n")
    follow(f"```console\n{shown}…\n```\n".replace("\n…", "\n…\n  optim.lr=fast: must be a number"))
    with pytest.raises(AssertionError, match="prints"):
        follow(f"```console\n{shown}  optim.lr=fast: must be an int\n```\n")


@pytest.mark.slow
def test_examples_of_the_help(follow):
    """The commands that `--help` shows, with their comments cut off, are as valid as those of a page."""
    texts = "\n".join(re.sub(r"\\\n *", "", command.details) for command in COMMANDS.values())
    lines = re.findall(r"^  ((?:lhtrain|torchrun)(?: .*?)?)(?: {3,}.*)?$", texts, re.MULTILINE)
    assert len(lines) > 30
    follow("\n".join(["<!-- gpu -->", "```bash", *dict.fromkeys(lines), "```"]) + "\n")
