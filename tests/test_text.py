"""Formatting of names and numbers as text and as JSON."""

import json
import math

import pytest

from lhtrain.text import (
    dict_at,
    dicts_at,
    duration,
    finite,
    from_json,
    number,
    number_at,
    one_line,
    printable,
    to_json,
    with_width,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.39612, "2.3961"),
        (0.0, "0.0000"),
        (None, "-"),
        (123456.789, "123456.7890"),
        (3.4e38, "3.400e+38"),  # not 39 digits
        (1.5e-7, "1.500e-07"),  # not 0.0000
        (-4e9, "-4.000e+09"),
        (math.inf, "inf"),
    ],
)
def test_a_number_has_few_digits_whatever_its_size(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("mean", "stderr", "shown"),
    [
        (2.39612, 0.0341, "2.396 ± 0.034"),
        (2.39612, 0.341, "2.40 ± 0.34"),
        (2.39612, 34.1, "2 ± 34"),
        (2.39612, 1e-9, "2.3961 ± 1.000e-09"),
        (2.39612, 0.0, "2.3961"),
        (2.39612, None, "2.3961"),
        (None, None, "-"),
        (1e30, 1e29, "1.000e+30 ± 1.000e+29"),
    ],
)
def test_a_mean_has_the_digits_that_its_error_allows(mean, stderr, shown):
    assert with_width(mean, stderr) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (-3.0, "0:00"),
        (57.4, "0:57"),
        (59.6, "1:00"),
        (3599.7, "1:00:00"),
        (3723, "1:02:03"),
        (183_845, "2 d 3:04:05"),
    ],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_control_characters_are_not_printed():
    assert printable("a\x1b[31mb\x00\udcff\rc\nd") == "a?[31mb???c\nd"
    assert printable("Ünï 漢字 $x$ [/b] %s") == "Ünï 漢字 $x$ [/b] %s"


def test_a_long_name_keeps_both_ends_on_one_line():
    assert one_line("a\n b\tc") == "a b c"
    long = one_line("start-" + "x" * 200 + "-end", 30)
    assert len(long) == 30 and long.startswith("start-") and long.endswith("-end")


def test_json_holds_no_nan_or_infinity():
    value = {"a": [math.nan, -math.inf, 1.5, (math.inf, 2)], "b": {"c": math.nan}, "d": True, "e": "NaN"}
    expected = {"a": [None, None, 1.5, [None, 2]], "b": {"c": None}, "d": True, "e": "NaN"}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected == finite(value)


def test_files_of_earlier_versions_are_read():
    assert from_json('{"loss": NaN, "peak": [Infinity, -Infinity]}') == {"loss": None, "peak": [None, None]}


def test_parts_of_damaged_files_are_left_out():
    parsed = {"a": 2, "b": True, "c": math.inf, "d": "2", "e": {"f": 1}, "g": [{"h": 1}, 3, None]}
    assert [number_at(parsed, key) for key in "abcdex"] == [2.0, None, None, None, None, None]
    assert [dict_at(parsed, key) for key in "aegx"] == [{}, {"f": 1}, {}, {}]
    assert [dicts_at(parsed, key) for key in "aegx"] == [[], [], [{"h": 1}], []]
