"""Passages of text, and sentences in the tokens of every kind of tokenizer."""

import numpy as np
import pytest

from lhtrain.data import ByteTokenizer, DataError
from lhtrain.data.prepare import pipeline
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.evaluation.hidden import Hidden, digit_tokens, question_and_answer
from lhtrain.evaluation.sources import own_texts
from lhtrain.evaluation.texts import Texts
from tests.evaluation.planted import texts_of


def test_a_passage_is_the_beginning_of_a_document_that_is_long_enough(tmp_path):
    texts = texts_of(tmp_path / "text", (100, 400, 500, 600))
    passages = texts.passages(400, 9)
    assert passages.n == 3 and not passages.joined
    beginnings = {bytes((tmp_path / "text" / f"{i}.txt").read_bytes()[:400]) for i in (1, 2, 3)}
    assert {bytes(passages.build(i).astype("u1")) for i in range(3)} == beginnings
    assert texts.passages(400, 2).n == 2


def test_short_documents_are_joined_without_repetition(tmp_path):
    texts = texts_of(tmp_path / "text", (100, 150, 200))
    passages = texts.passages(220, 9)
    assert passages.joined and passages.n == 2  # 453 tokens with those that end documents
    both = np.concatenate([passages.build(0), passages.build(1)])
    assert len(both) == 440 and (both == texts.tokenizer.eos).sum() == 2
    assert texts.passages(1000, 1) is None
    assert len(texts.filler(1000, 3)) == 1000  # filler repeats


def test_sentences_are_hidden_in_order_of_their_depth():
    filler = np.arange(20)
    hidden = Hidden([(1.0, np.array([-2])), (0.0, np.array([-1]))], np.array([-3]), np.array([-4]))
    assert hidden.in_text(filler).tolist() == [-1, *range(16), -2, -3, -4]
    with pytest.raises(ValueError, match="must fit"):
        hidden.in_text(filler[:3])


class Fake:
    """A tokenizer of whole words, which has a token for a space and a word, and pieces of three digits."""

    name, eos, bos = "fake", 0, None

    def __init__(self, digits_apart=False):
        self.known, self.apart = {}, digits_apart

    def encode(self, text):
        pieces = []
        for word in text.split(" ")[1:] if text.startswith(" ") else text.split(" "):
            if word.isdecimal():
                digits = [word[i : i + 3] for i in range(0, len(word), 3)]
                pieces += [" ", *digits] if self.apart else [f" {digits[0]}", *digits[1:]]
            else:
                pieces.append(f" {word}")
        return np.array([self.known.setdefault(piece, len(self.known)) for piece in pieces])


@pytest.mark.parametrize(("apart", "length"), [(True, 2), (False, 2)])
def test_the_answer_is_what_depends_on_the_number(apart, length):
    texts = Texts.__new__(Texts)
    texts.tokenizer = Fake(apart)
    question, answer = question_and_answer(texts, " the key is", "48213")
    assert len(question) == 3 + apart and len(answer) == length
    before, digits = digit_tokens(texts, " the key is")
    assert len(before) == 3 + apart and len(set(digits.tolist())) == 10


def test_digits_of_several_tokens_are_an_error():
    texts = Texts.__new__(Texts)
    texts.tokenizer = Fake()
    texts.tokenizer.encode = lambda text: np.frombuffer(text.replace("9", "10").encode(), np.uint8)
    with pytest.raises(DataError, match="no single token"):
        digit_tokens(texts, " the key is")


def test_prepared_texts_of_another_tokenizer_are_an_error(tmp_path):
    texts_of(tmp_path / "text")
    folder = tmp_path / "prepared"
    pipeline.prepare(Recipe("text", str(tmp_path / "text")), folder, 1)
    with pytest.raises(DataError, match="needs tokens of"):
        own_texts(str(folder), ByteTokenizer(bos=True), {}, 0)
    assert own_texts(str(folder), ByteTokenizer(), {}, 0).n_tokens > 0
