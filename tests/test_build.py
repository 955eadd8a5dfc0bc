"""Parts of a run: what is checked and noted when they are built."""

from types import SimpleNamespace

import pytest

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.build import _check_apart, _padding_notes
from lhtrain.errors import RunError
from lhtrain.stage import Stage


def test_much_padding_by_alignment_is_noted():
    def notes(alignment, n_tokens):
        return _padding_notes(SimpleNamespace(alignment=alignment, n_tokens=n_tokens, tokens_per_epoch=100))

    assert notes(None, 50) == notes(1, 50) == notes(16, 95) == []
    (note,) = notes(16, 77)
    assert note.startswith("data.documents=apart: 23% of the positions are padding")
    assert "multiple of 16" in note


def test_attention_that_does_not_keep_documents_apart_is_refused():
    stages = {name: Stage(name, kind, 64, 64, 1) for name, kind in (("a", "dense"), ("b", "chunked"))}
    _check_apart({"a": FULL_ATTENTION}, stages)
    with pytest.raises(RunError, match=r"attention=chunked of .* does not keep"):
        _check_apart({"a": FULL_ATTENTION, "b": lambda q, k, v, where: q}, stages)
