"""The real command with data.documents=apart: resumed, and on two ranks that share sequences."""

import signal

import pytest
import torch

pytestmark = pytest.mark.slow

APART = ("stage=dense", "model.seq_len=512", "run.steps=10", "checkpoint.every=3", "data.documents=apart")
APART += ("data.positions=restarted", "model.n_heads=2", "model.n_kv_heads=2")


@pytest.fixture(scope="session")
def settings(lhtrain):
    """Settings, with a folder of short texts."""
    folder = lhtrain.folder / "texts_of_documents"
    folder.mkdir()
    for number in range(400):
        lines = (f"{number} says {i % 7} things of {number * i % 11}\n" for i in range(1 + number * 37 % 23))
        (folder / f"{number}.txt").write_text("".join(lines))
    return (f"data.path={folder}", *APART)


@pytest.fixture(scope="session")
def alone(lhtrain, settings):
    return lhtrain("apart", *settings)


def test_a_resumed_run_is_the_same_bit_for_bit(lhtrain, settings, alone):
    assert lhtrain.kill_after("apart_killed", 5, *settings).status == -signal.SIGKILL
    assert lhtrain("apart_killed", *settings, "resume=auto").trace == alone.trace


def test_two_ranks_train_what_one_does(lhtrain, settings, alone):
    """The first steps by the ring, the others by Ulysses."""
    two = (*settings, "parallel.cp=2")
    lhtrain.kill_after("apart_ranks", 5, *two, "parallel.cp_attention=ring", ranks=2)
    resumed = lhtrain("apart_ranks", *two, "parallel.cp_attention=ulysses", "resume=auto", ranks=2)
    assert "continues from step_" in resumed.out
    found, wanted = (
        torch.tensor([row[key] for row in run.rows for key in ("loss", "val_loss") if key in row])
        for run in (resumed, alone)
    )
    torch.testing.assert_close(found, wanted, rtol=5e-4, atol=0)


def test_documents_together_give_another_loss(lhtrain, settings, alone):
    together = lhtrain("together", *settings, "data.documents=together", "data.positions=continued")
    assert abs(together.rows[0]["loss"] - alone.rows[0]["loss"]) > 1e-4


def test_a_change_of_the_key_is_named_on_resume(lhtrain, settings, alone):
    changed = lhtrain(
        "apart", *settings, "data.documents=together", "data.positions=continued", "resume=auto", status=1
    )
    assert "data.documents: apart -> together" in changed.err
