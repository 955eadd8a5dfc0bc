"""Parsing of arguments; help, dispatch and completion for all commands of the table."""

import re
from pathlib import Path

import pytest

from lhtrain.cli import main
from lhtrain.commands import completion
from lhtrain.commands.command import n_started
from lhtrain.commands.table import COMMANDS, find, members
from lhtrain.errors import UsageError

ROOT = Path(__file__).parents[2]
VISIBLE = [name for name, command in COMMANDS.items() if not command.hidden]


def test_words_options_and_settings_come_in_any_order():
    parsed = COMMANDS["slurm submit"].parse(["a=1", "--dry-run", "b=2", "--config-dir", "x", "c=[1,2]", "~d"])
    assert parsed.dry_run and parsed.config_dir == ["x"]
    assert parsed.settings == ["a=1", "b=2", "c=[1,2]", "~d"]
    assert COMMANDS["train"].parse(["-m", "a=1,2", "--cfg", "job"]).settings == ["a=1,2"]


def test_keys_of_the_command_itself_are_not_settings_of_the_run():
    parsed = COMMANDS["extend"].parse(["runs/a=b", "steps=+5", "optim.lr=1e-3"])
    assert (parsed.DIR, parsed.steps, parsed.settings) == ("runs/a=b", "+5", ["optim.lr=1e-3"])
    parsed = COMMANDS["estimate"].parse(["gpu=h200"])
    assert (parsed.gpu, parsed.ranks) == ("h200", None)


def test_a_word_that_is_an_existing_file_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dtype=x").mkdir()
    assert COMMANDS["export"].parse(["dtype=x", "out"]).RUN == "dtype=x"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "submit", "--dryrun"], "--dryrun: no such option .*did you mean --dry-run"),
        (["estimate", "-m"], "lhtrain -m starts a sweep"),
        (["export", "a", "b", "dtyp=x"], "did you mean dtype"),
        (["export", "a", "b", "c"], "unrecognized arguments: c"),
        (["export", "a", "b", "dtype=x", "dtype=y"], "dtype= is given twice"),
        (["resume"], "resume: needs DIR"),
        (["resume", " "], "must not be empty"),
        (["data", "verify"], "data verify: needs FOLDER"),
        (["trian"], "no command 'trian'; did you mean train"),
        (["data", "prepair"], "no command data 'prepair'; did you mean prepare"),
        (["--config-dir"], "expected one argument"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(UsageError, match=message):
        command, rest = find(words)
        command.parse(rest)


@pytest.mark.parametrize(
    "words", [["export", "a", "b"], ["generate", "a"], ["data", "prepare"], ["report", "a"]]
)
def test_commands_of_one_process_are_refused_by_several(words, monkeypatch):
    """Otherwise each process would write the same files."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    command, rest = find(words)
    with pytest.raises(UsageError, match=r"a launcher started 4; start it without torchrun"):
        command.run(rest)
    monkeypatch.delenv("WORLD_SIZE")  # left over in a shell
    assert n_started() == 1


@pytest.mark.parametrize("name", VISIBLE)
def test_every_command_has_help_with_examples(name, capsys):
    main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert (
        f"lhtrain {name}" in text
        and COMMANDS[name].summary in text
        and re.search(r"Examples\n  .*lhtrain ", text)
    )
    assert max(map(len, text.splitlines())) <= 112
    for line in COMMANDS[name].details.splitlines():
        outside_quotes = re.sub(r"'[^']*'", "", line)
        assert not re.search(r"=\[|=\{|/\*", outside_quotes), f"zsh refuses this without quotes: {line}"
    main(["help", *name.split()])
    assert capsys.readouterr().out.startswith(text)  # a group or key of the same name follows


def test_the_pages_that_help_names_exist():
    for command in COMMANDS.values():
        for page in command.docs:
            assert (ROOT / "docs" / f"{page}.md").is_file(), f"{command.name}: docs/{page}.md"


def test_the_overview_lists_every_command(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    for name in members():
        assert f"\n  {name} " in out and COMMANDS[name].summary in out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("lhtrain ", {*members()}),
        ("lhtrain sl", {"slurm"}),
        ("lhtrain slurm ", {"submit", "resume", "extend", "status"}),
        ("lhtrain slurm submit --d", {"--dry-run"}),
        ("lhtrain data inspect --", {"--document", "--help"}),
        ("lhtrain extend runs/a st", {"steps="}),
        ("lhtrain help est", {"estimate"}),
        ("lhtrain help slurm st", {"status"}),
        ("lhtrain help model.seq", {"model.seq_len"}),
        ("lhtrain help model=gpt", {"model=gpt_tiny", "model=gpt_350m"}),
        ("lhtrain --mu", {"--multirun"}),
    ],
)
def test_completion_offers(monkeypatch, capsys, line, offered):
    asked = []
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(completion, "_ask_hydra", asked.append)
    main(["-sc", "query=bash"])
    found = set(capsys.readouterr().out.split())
    *words, last = line.split(" ")[1:]
    assert offered <= found and all(word.startswith(last) for word in found)
    assert bool(asked) == (find(words)[0].settings and not last.startswith("-"))
