"""The calls that Weights & Biases gets, and its failures. Other tests use the real package offline."""

import sys
from types import SimpleNamespace

import pytest

from lhtrain.conf.schema import LoggerConfig, LoggerMode
from lhtrain.registry import TRACKERS, load_plugins
from lhtrain.report.trackers import SafeTracker

ONLINE = LoggerConfig(kind="wandb", mode=LoggerMode.online)
ROW = {"kind": "train", "step": 1, "stage": "[/a]", "loss": 2.0, "mfu": None}
STAGE = {"name": "[/a]", "tokens_per_second": None, "loss_mean": 2.0, "val_loss": None}


class Service:
    """A fake of the wandb package: records the calls, and raises `error` in the method `fails_in`."""

    Error = type("Error", (Exception,), {})

    def __init__(self, fails_in="", error=None):
        self.fails_in, self.error = fails_in, error or self.Error("No API key configured.")
        self.asked, self.rows, self.ends, self.summary, self.torn_down = [], [], [], {}, 0

    def _do(self, what):
        if self.fails_in == what:
            raise self.error

    def teardown(self, exit_code):
        self.torn_down += 1
        raise self.error or AssertionError

    def init(self, **settings):
        self._do("init")
        self.asked.append(settings)
        return SimpleNamespace(
            id="abc",
            define_metric=lambda *_, **__: self._do("define_metric"),
            log=lambda row: self._do("log") or self.rows.append(row),
            finish=lambda exit_code: self._do("finish") or self.ends.append(exit_code),
            summary=self.summary,
        )


@pytest.fixture
def opened(tmp_path, monkeypatch):
    def start(service, config=ONLINE, name="name"):
        monkeypatch.setitem(sys.modules, "wandb", service)
        printed = []
        tracker = SafeTracker(config, name, tmp_path, {}, printed.append)
        tracker.start()
        return tracker, printed

    return start


@pytest.mark.parametrize("mode", LoggerMode)
def test_a_resumed_run_continues_the_same_wandb_run(opened, mode):
    service = Service()
    for _ in range(2):
        opened(service, LoggerConfig(kind="wandb", mode=mode))
    again = "allow" if mode is LoggerMode.online else None
    assert [(asked["id"], asked["resume"]) for asked in service.asked] == [(None, None), ("abc", again)]


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_an_empty_id_file_is_ignored(opened, tmp_path, content):
    (tmp_path / "wandb_id.txt").write_bytes(content)
    service = Service()
    opened(service)
    assert service.asked[0]["id"] is None


def test_names_and_values_are_made_acceptable(opened):
    service = Service()
    tracker, _ = opened(service, name="a\n" + "x" * 500)
    tracker.take(ROW)
    tracker.finish({"stages": [STAGE]})
    assert len(service.asked[0]["name"]) == 128 and "\n" not in service.asked[0]["name"]
    assert service.rows == [{"step": 1, "train/stage": "[/a]", "train/loss": 2.0}]
    assert service.ends == [0]


ERRORS = [Service.Error("No key."), OSError(28, "No space left"), ValueError(), RuntimeError("a\n" * 99)]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["init", "define_metric", "log", "finish"])
def test_a_failure_is_reported_once_and_training_continues(opened, where, error):
    service = Service(where, error)
    tracker, printed = opened(service)
    for _ in range(3):
        tracker.take(ROW)
    tracker.finish({"stages": [STAGE]})
    (line,) = printed
    assert line.startswith("warning   logger=wandb ") and "\n" not in line and " : " not in line
    assert ("ValueError" in line) == isinstance(error, ValueError)
    assert line.endswith("; logger.mode=offline needs no account")
    assert len(service.rows) == (3 if where == "finish" else 0)
    assert service.torn_down == (where in ("log", "finish"))


def test_an_unreadable_id_file_is_reported(opened, tmp_path):
    (tmp_path / "wandb_id.txt").write_bytes(b"\xff\xfe")
    tracker, printed = opened(Service())
    tracker.take(ROW)
    assert len(printed) == 1


def test_without_a_tracker_nothing_is_printed(opened):
    tracker, printed = opened(Service("init"), LoggerConfig())
    tracker.take(ROW)
    tracker.finish(None)
    assert not printed


PLUGIN = """
from lhtrain.registry import TRACKERS

@TRACKERS.add("mine")
class Mine:
    def __init__(self, config, name, run_dir, settings):
        self.file = run_dir / "mine.txt"
        self.file.write_text(f"{name} {config.options['team']} {settings}")

    def log(self, row):
        if row["step"] == 2:
            raise OSError("no network")
        self.file.write_text(str(row["step"]))

    def finish(self, summary):
        self.file.write_text("finished")

    def abandon(self):
        self.file.write_text("abandoned")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "tracker_of_a_user.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TRACKERS, "_entries", dict(TRACKERS._entries))
    load_plugins(["tracker_of_a_user"])
    monkeypatch.delitem(sys.modules, "tracker_of_a_user")
    return LoggerConfig(kind="mine", options={"team": "x"})


def test_a_plugin_tracker_gets_rows_until_it_fails(plugin, opened, tmp_path):
    tracker, printed = opened(None, plugin)
    kept = tmp_path / "mine.txt"
    assert kept.read_text() == "name x {}"
    tracker.take(ROW)
    assert kept.read_text() == "1" and not printed
    tracker.take(ROW | {"step": 2})
    tracker.take(ROW | {"step": 3})
    tracker.finish(None)
    assert kept.read_text() == "abandoned"
    (line,) = printed
    assert line.startswith("warning   logger=mine failed: no network; training continues")
