"""Pieces: the text again, whatever the chunks, cut between words and never inside a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lhtrain.data import pieces as module
from lhtrain.data.pieces import pieces


@given(st.text(alphabet="ab \né€😀", max_size=400), st.integers(1, 50), st.integers(1, 50))
def test_the_pieces_do_not_depend_on_the_chunks(text: str, one: int, two: int) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", 20)
        patch.setattr(module, "LONGEST", 60)
        first, second = (list(pieces(data[i : i + n] for i in range(0, len(data), n))) for n in (one, two))
    assert first == second
    assert "".join(piece.decode() for piece in first) == text
    assert all(0 < len(piece) <= 64 for piece in first)


def test_cut_at_the_first_line_after_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 10)
    monkeypatch.setattr(module, "LONGEST", 60)
    text = b"one two\nthree four\nfive\n\n six seven eight\nnine"
    assert list(pieces([text])) == [b"one two\nthree four\n", b"five\n\n six seven eight\n", b"nine"]
