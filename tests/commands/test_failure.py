"""The messages with which a run ends that cannot start or continue."""

import errno

import torch
from omegaconf import OmegaConf

from lhtrain.commands.failure import in_words, out_of_memory
from lhtrain.compute.advice import advice
from lhtrain.compute.fill import compose_config
from lhtrain.conf.compose import check_overrides
from lhtrain.files import NotRegular


def test_out_of_memory_lists_settings_that_help(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has …")
    composed = compose_config(["model=lighthouse_530m", "run.dir=d", "run.name=n"])
    message = out_of_memory(error, composed).splitlines()
    assert message[0] == "CUDA out of memory." and "the GPU has 80 GB" in message[1]
    assert any("compute.recompute=full " in line and line.endswith("fits") for line in message)


def test_out_of_memory_uses_the_number_of_ranks(monkeypatch):
    """Two ranks share weights and optimizer state: the same advice as with dp_shard=2."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = ["model=lighthouse_530m", "run.batch_tokens=196608", "run.dir=d", "run.name=n"]
    expected = compose_config([*settings, "parallel.dp_shard=2"], 2, 80 * 10**9)
    given = check_overrides(settings)
    message = out_of_memory(torch.OutOfMemoryError("CUDA out of memory."), given).splitlines()
    assert message[1:] == advice(expected, 80)


def test_ranks_that_do_not_connect_are_reported():
    composed = OmegaConf.create({"parallel": {"timeout": 3}})
    error = torch.distributed.DistStoreError("Timed out; 1/2 clients joined.")
    message = in_words(error, lambda: composed)
    assert "parallel.timeout=3 s" in message and str(error) in message


def test_disk_errors_are_messages_and_bugs_keep_their_traceback():
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a/summary.tmp")
    assert in_words(full, OmegaConf.create) == str(full)
    link = NotRegular(errno.ELOOP, "is a symbolic link, must be a regular file", "runs/a/history.jsonl")
    immutable = PermissionError(errno.EPERM, "Operation not permitted", "runs/a/checkpoints")
    for error in (link, immutable):
        assert in_words(error, OmegaConf.create) == str(error)
    for replaced in (errno.ENOENT, errno.EISDIR):
        with_name = OSError(replaced, "no such thing", "r/metrics.jsonl")
        assert in_words(with_name, OmegaConf.create) == str(with_name)
        assert in_words(OSError(replaced, "no such thing"), OmegaConf.create) is None
    assert in_words(OSError(errno.EBADF, "Bad file descriptor"), OmegaConf.create) is None
    assert in_words(ZeroDivisionError(), OmegaConf.create) is None
