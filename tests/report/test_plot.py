"""loss.png: unusual names and numbers, and how often it is drawn."""

import itertools
import time

import numpy as np
import pytest

from lhtrain.report import plot
from lhtrain.report.plot import POINTS, SHARE, Plot, plot_loss

NAMES = ["exp_$SLURM_JOB_ID_$USER", "$\\frac{", "[/mnt/a]", "%s %(x)d", "a\nb\x1b[31m", "漢字🎉", "_hidden"]
NAMES += ["x" * 5000, "", " ", "\udcff\x00", "\\", "{}"]


def rows(stages=("a", "b"), losses=(5.0, 4.0, 3.0), val_losses=(3.5,)):
    out = []
    for number, stage in enumerate(stages):
        for i, loss in enumerate(losses):
            step = number * len(losses) + i + 1
            out.append({"kind": "train", "stage": stage, "tokens": 512 * step, "seconds": 0.1 * step})
            out[-1]["loss"] = loss
    for loss in val_losses:
        out.append({"kind": "validation", "stage": stages[-1], "tokens": 1024, "seconds": 0.2})
        out[-1]["val_loss"] = loss
    return out


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_parsed(tmp_path, name):
    path = tmp_path / "loss.png"
    plot_loss(rows(stages=(name, "other")), path, title=name)
    assert is_png(path) and [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]


def test_the_legend_shows_stage_names_unchanged():
    names = ["_a", "$b$", "c", "validation"]
    texts = plot._figure(rows(stages=names[:3]), "$t$").axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == names
    assert not any(text.get_parse_math() for text in texts)


@pytest.mark.parametrize(
    ("losses", "val_losses"),
    [
        ((2.0,), ()),
        ((2.0, 2.0), (2.0, 2.0)),
        ((0.0, 0.0), (0.0,)),
        ((None, 2.0, float("nan")), (None, float("inf"))),
        ((None, None), (None,)),
        ((3.4e38, 1e-30), (1e300,)),
        ((-1e308, 1e308), (-1e308,)),
    ],
)
def test_unusual_losses_are_drawn(tmp_path, losses, val_losses):
    plot_loss(rows(losses=losses, val_losses=val_losses), tmp_path / "loss.png", "title")
    assert is_png(tmp_path / "loss.png")


def test_a_stage_that_occurs_twice_has_two_lines():
    switch = {"kind": "switch", "stage": "a", "tokens": 0, "seconds": 0.0}
    axis = plot._figure([*rows("a"), *rows("b"), *rows("a"), switch, *rows("a")], "t").axes[0]
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["a", "b", "a", "a", "validation"]


def test_without_a_logged_step_nothing_is_drawn(tmp_path):
    plot_loss([], tmp_path / "loss.png", "title")
    assert not list(tmp_path.iterdir())


def test_matplotlib_settings_of_the_user_are_ignored(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "font.family": "no such font", "savefig.format": "svg"}):
        plot_loss(rows(), tmp_path / "loss.png", "title")
        assert matplotlib.rcParams["text.usetex"]
    assert is_png(tmp_path / "loss.png")


def test_a_long_run_keeps_its_spikes_and_a_bounded_number_of_points():
    loss = np.full(300_000, 2.0)
    loss[123_456] = 9.0
    x, y = plot._extremes(np.arange(len(loss)), loss)
    assert len(x) <= POINTS and y.max() == 9.0 and x[y.argmax()] == 123_456
    assert (np.diff(x) > 0).all()


def test_the_running_mean_equals_a_convolution():
    values = np.random.default_rng(0).normal(size=200)
    expected = np.convolve(values, np.full(9, 1 / 9), "valid")
    np.testing.assert_allclose(plot._running_mean(values, 9), expected)


@pytest.mark.parametrize("fails", [False, True])
def test_drawing_takes_a_small_share_of_a_run(tmp_path, monkeypatch, fails):
    """By the test's own clock, drawing takes 3 s; it must happen at most every 3 / SHARE seconds."""
    now, drawn = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    renewed = Plot(tmp_path / "loss.png", "title")

    def draw(_rows):
        drawn.append(now[0])
        now[0] += 3.0
        if fails:
            raise RuntimeError

    monkeypatch.setattr(renewed, "draw", draw)
    for _ in range(1000):
        try:
            renewed.renew([])
        except RuntimeError:
            assert fails
        now[0] += 1.0
    assert drawn[0] == 1000.0 and len(drawn) > 1
    assert all(b - a >= 3.0 / SHARE for a, b in itertools.pairwise(drawn))
