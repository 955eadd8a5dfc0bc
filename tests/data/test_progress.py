"""The progress that `prepare` prints, with the estimated time left."""

import pytest

from lhtrain.data import progress
from lhtrain.data.progress import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the meter reads, in seconds: the first entry of the list."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("total_bytes", "max_tokens", "rest"),
    [
        (4_000_000, None, ", 25% done, 0:00:30 left"),
        (4_000_000, 1_000_000, ", 50% done, 0:00:10 left"),  # the limit comes before the end of the source
        (4_000_000, 100_000_000, ", 25% done, 0:00:30 left"),
        (0, 1_000_000, ", 50% done, 0:00:10 left"),  # a streamed data set
        (0, None, ""),
        (0, 250_000, ", 100% done, 0:00:00 left"),
    ],
)
def test_the_line(clock: list[float], total_bytes: int, max_tokens: int | None, rest: str) -> None:
    with Meter(total_bytes, max_tokens, show=False) as meter:
        clock[0] += 10
        meter.advance(1_000_000, 500_000)
        assert meter.line() == "500,000 tokens, 0.05 M tokens/s" + rest


def test_the_line_at_the_start(clock: list[float]) -> None:
    assert Meter(4_000_000, None, show=False).line() == "0 tokens, 0.00 M tokens/s"


def test_a_plain_line_every_30_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Meter(4_000_000, None, show=True) as meter:
        for _ in range(4):
            clock[0] += 10
            meter.advance(1_000_000, 1_000_000)
    assert capsys.readouterr().err == "preparing: 3,000,000 tokens, 0.10 M tokens/s, 75% done, 0:00:10 left\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    with Meter(4_000_000, None, show=True) as meter:
        meter.advance(4_000_000, 12_345)
    shown = capsys.readouterr().err
    assert "preparing" in shown and "12,345 tokens" in shown and "100% done" in shown
