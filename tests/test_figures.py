"""The figures show the numbers of the measured CSVs."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)


def labels(path):
    return re.findall(r"<text[^>]*>([^<]+)<", path.read_text())


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_figure_is_the_one_that_the_script_draws(tmp_path, name):
    figures.FIGURES[name](tmp_path / name)
    assert labels(tmp_path / name) == labels(ROOT / "docs" / name), "run scripts/figures.py"


@pytest.mark.parametrize("drawn", [figures.AT_98K, figures.AT_262K], ids=lambda drawn: drawn.study)
def test_recipes_in_the_figure_are_in_the_measurements(drawn):
    points = figures.recipe_points(drawn)
    assert set(drawn.named) <= set(points)
    assert points["ladder"][1] == sorted(points["ladder"][1]) and len(points["ladder"][1]) == 2


def test_its_labels_are_ratios_and_speeds_of_the_measurements():
    times, speeds = figures.layer_times(), figures.step_speeds()
    shown = labels(ROOT / "docs" / "speed.svg")
    for tokens in (32_768, 98_304, 524_288):
        assert f"{times['dense cudnn'][tokens] / times['layer'][tokens]:.0f}×" in shown
    for tokens in (98_304, 262_144):
        assert f"{speeds['lighthouse'][tokens] / 1000:.3g}k" in shown
        assert f"{speeds['recovery'][tokens] / 1000:.3g}k" in shown
