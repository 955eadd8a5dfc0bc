"""The real command with data.prepare=during: resumed, on two ranks, and with a source that fails."""

import json
import signal
from copy import copy

import pytest
import torch

pytestmark = pytest.mark.slow

DURING = ("data.prepare=during", "data.portion=12000", "data.keep_gb=0.0001", "data.val_fraction=0.2")
DURING += ("data.documents=apart", "stages.recovery.seq_len=1024", "run.grad_accum=1", "data.workers=1")


def write(folder):
    """Write six files of about 8,000 bytes of text: the run below reads them more than once."""
    folder.mkdir()
    for number in range(6):
        texts = (f"{number} {i} says {i % 7} of {number * i % 11}\n" * (1 + i * 7 % 13) for i in range(60))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{number}.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="session")
def command(lhtrain):
    """The command with data of its own: other files use `lhtrain` in the same process."""
    return copy(lhtrain)


@pytest.fixture(scope="session")
def streamed(command):
    """Settings that tokenize during training, and a cache of its own for each run.

    By default the command reads a mixture of two sources.
    """
    folders = [write(command.folder / f"to_stream_{name}") for name in ("a", "b")]
    parts = (f"{path.name[-1]}: {{source: files, path: {path}, weight: 2}}" for path in folders)
    mixture = ["data=mix", f"data.mix={{{', '.join(parts)}}}"]

    def settings(cache, source=None):
        chosen = mixture if source is None else ["data=files", f"data.path={source}"]
        command.data = [*chosen, f"data.cache_dir={command.folder / cache}"]
        return DURING

    return settings


@pytest.fixture(scope="session")
def alone(command, streamed):
    run = command("during", *streamed("cache_of_stream"))
    assert min(read["epochs"] for read in run.summary["sources"].values()) > 0.5
    return run


def test_a_run_that_is_killed_and_stopped_is_the_same_bit_for_bit(command, streamed, alone):
    """The last process finds an empty cache, like one on another machine."""
    settings = streamed("cache_of_killed")
    assert command.kill_after("during_killed", 6, *settings).status == -signal.SIGKILL
    stopped = command.kill_after("during_killed", 11, *settings, "resume=auto", with_signal=signal.SIGINT)
    assert stopped.status == 128 + signal.SIGINT
    settings = streamed("cache_of_another")
    resumed = command("during_killed", *settings, "resume=auto")
    assert "continues from step_" in resumed.out and resumed.trace == alone.trace
    left = list(command.folder.glob("cache_of_*/during_*/*.bin"))
    assert left and not list(command.folder.glob("cache_of_another/during_*/.*.tmp"))


def test_two_ranks_train_what_one_does(command, streamed, alone):
    two = command("during_ranks", *streamed("cache_of_ranks"), ranks=2)
    found, wanted = (
        torch.tensor([row[key] for row in run.rows for key in ("loss", "val_loss") if key in row])
        for run in (two, alone)
    )
    torch.testing.assert_close(found, wanted, rtol=5e-4, atol=0)


def test_a_source_that_fails_later_ends_the_run_with_its_checkpoints(command, streamed):
    source = write(command.folder / "to_fail")
    with (source / "0.jsonl").open("a") as file:  # the fifth unit that is read
        file.write('{"text": 5}\n')
    settings = (*streamed("cache_of_failed", source), "checkpoint.every=2")
    failed = command("during_failed", *settings, status=1)
    assert "0.jsonl' line 61 has 5 (int)" in failed.err and "Traceback" not in failed.err
    assert failed.checkpoints and 2 <= failed.rows[-1]["step"] < 16


def test_other_portions_are_other_data(command, streamed, alone):
    settings = (*streamed("cache_of_stream"), "data.portion=30000", "data.keep_gb=0.001", "resume=auto")
    changed = command("during", *settings, status=1)
    assert "data.portion: 12000 -> 30000" in changed.err
    prepared = command.bare("data", "prepare", "data=text", "data.path=text", "data.prepare=during")
    assert prepared.returncode == 2 and "leave the key out" in prepared.stderr
