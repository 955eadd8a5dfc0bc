"""What Weights & Biases is asked for; that it works offline is tested with the real command."""

import sys
from types import SimpleNamespace

import pytest

from lhtrain.conf.schema import LoggerConfig, LoggerKind, LoggerMode
from lhtrain.errors import RunError
from lhtrain.logger import open_logger

ONLINE = LoggerConfig(kind=LoggerKind.wandb, mode=LoggerMode.online)


class Service:
    """Stands for the package: remembers what `init` was given."""

    Error = type("Error", (Exception,), {})

    def __init__(self, refuses=""):
        self.refuses, self.asked = refuses, []

    def init(self, **settings):
        if self.refuses:
            raise self.Error(self.refuses)
        self.asked.append((settings["id"], settings["resume"]))
        return SimpleNamespace(id="abc", define_metric=lambda *_, **__: None)


def opened(monkeypatch, service, config, folder):
    monkeypatch.setitem(sys.modules, "wandb", service)
    return open_logger(config, "name", folder, {})


@pytest.mark.parametrize("mode", LoggerMode)
def test_a_resumed_run_goes_on_in_the_same_place(tmp_path, monkeypatch, mode):
    service = Service()
    for _ in range(2):
        opened(monkeypatch, service, LoggerConfig(kind=LoggerKind.wandb, mode=mode), tmp_path)
    again = "allow" if mode is LoggerMode.online else None
    assert service.asked == [(None, None), ("abc", again)]


def test_no_account_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"logger.mode=online: No API key.* logger.mode=offline needs no"):
        opened(monkeypatch, Service("No API key configured."), ONLINE, tmp_path)
