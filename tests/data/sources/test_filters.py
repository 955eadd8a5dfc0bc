"""Filters: which rows pass, and errors in conditions."""

import pytest

from lhtrain.data.errors import DataError
from lhtrain.data.sources.filters import Filters, filter_problem

ROW = {"score": 3.5, "lang": "en", "ok": True, "meta": {"year": 1999}, "gone": None}


@pytest.mark.parametrize(
    ("condition", "passes"),
    [
        ("score >= 3", True),
        ("score>3.5", False),
        ("score < 4", True),
        ("score <= 3", False),
        ("lang == en", True),
        ("lang == 'en'", True),
        ("lang != en", False),
        ("ok == true", True),
        ("meta.year == 1999", True),
        ("chars > 4", True),
        ("chars > 5", False),
        ("gone > 1", False),
        ("gone == null", True),
    ],
)
def test_conditions(condition: str, passes: bool) -> None:
    assert Filters([condition]).passes(ROW, "words") is passes
    assert Filters([condition, "score < 0"]).passes(ROW, "words") is False


def test_columns() -> None:
    assert Filters(["meta.year > 1", "chars > 3", "lang == en"]).columns == {"meta.year", "lang"}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "nothing > 1",
            r"data\.filters='nothing': .*no such column; columns: gone, lang, meta, ok, score",
        ),
        ("meta.month > 1", r"data\.filters='meta\.month': .*no such column; columns: year"),
        ("lang > 3", r"lang='en' > 3: str and int cannot be compared"),
    ],
)
def test_errors_name_the_column(condition: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Filters([condition]).passes(ROW, "words")


@pytest.mark.parametrize("condition", ["", "score", "score ~ 3", ">= 3", "score >="])
def test_a_condition_of_another_form(condition: str) -> None:
    assert "must be 'COLUMN OPERATOR VALUE'" in (filter_problem(condition) or "")
    with pytest.raises(DataError, match=r"data\.filters="):
        Filters([condition])
