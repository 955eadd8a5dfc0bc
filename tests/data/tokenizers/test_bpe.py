"""BPE tokenizers: tiktoken from its cache, tokenizer.json files, end-of-text tokens, errors."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.pipeline import prepare
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.tokenizers.base import PREPARED, EncodeError
from lhtrain.data.tokenizers.named import open_tokenizer, vocabulary_size
from tests.data.encodings import fill_cache

TEXT = "It's 3 o'clock,\n  isn't it?  日本語 naïve\tcafé 12345   \n\n" * 40


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    (tmp_path / "tiktoken").mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(fill_cache(tmp_path / "tiktoken")))
    return open_tokenizer("gpt2")


@pytest.fixture
def trained(tmp_path):
    """A tokenizer.json trained on a few lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_gpt2_from_the_cache(gpt2):
    tokens = gpt2.encode("hello world")
    assert tokens.tolist() == [31373, 995] and tokens.dtype == np.uint16
    assert gpt2.decode(gpt2.encode(TEXT)) == TEXT
    assert (gpt2.vocab_size, gpt2.eos) == (50257, 50256)


def test_a_tokenizer_file(trained):
    tokenizer = open_tokenizer(trained, bos=True)
    assert tokenizer.eos == 0 and tokenizer.bos == 1 and tokenizer.vocab_size <= 400
    assert 0 not in tokenizer.encode("</s> is text here")
    assert open_tokenizer(trained).fingerprint != tokenizer.fingerprint


def test_long_documents_encode_as_the_whole_text(gpt2, tmp_path, monkeypatch):
    """The windows of a long text give the tokens of the whole text."""
    text = TEXT * 200
    (tmp_path / "long.txt").write_text(text)
    recipe = Recipe(source="text", path=str(tmp_path / "long.txt"), tokenizer="gpt2")
    [store] = prepare(recipe, tmp_path / "out", 1, progress=False).open_stores(tmp_path / "out")
    whole = gpt2.encode(text)
    assert np.array_equal(store.document(0)[:-1], whole) and store.document(0)[-1] == gpt2.eos


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt5", "data.tokenizer='gpt5': must be"),
        ("/no/such/tokenizer.json", "data.tokenizer='/no/such/tokenizer.json': must be an existing file"),
    ],
)
def test_errors_name_an_unknown_tokenizer(name, message):
    with pytest.raises(DataError, match=message):
        open_tokenizer(name)


def test_an_end_of_text_not_marked_special_is_text_when_a_text_spells_it(trained):
    marked = open_tokenizer(trained)
    content = json.loads(Path(trained).read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    Path(trained).write_text(json.dumps(content))
    tokens = open_tokenizer(trained).encode("a</s>b")
    assert tokens.tolist() == marked.encode("a</s>b").tolist() and marked.eos not in tokens


def with_changes(path, change):
    """Change the tokenizer.json at `path` in place."""
    content = json.loads(Path(path).read_text())
    change(content)
    Path(path).write_text(json.dumps(content, ensure_ascii=False))
    return path


def called(old, new):
    """Return a change that renames the special token `old` to `new`."""

    def change(content):
        for token in content["added_tokens"]:
            if token["content"] == old:
                token["content"] = new
        content["model"]["vocab"][new] = content["model"]["vocab"].pop(old)

    return change


def test_end_of_text_with_full_width_bars(trained):
    """DeepSeek's tokens have them."""
    with_changes(trained, called("</s>", "<｜end▁of▁sentence｜>"))
    with_changes(trained, called("<s>", "<｜begin▁of▁sentence｜>"))
    tokenizer = open_tokenizer(trained, bos=True)
    assert (tokenizer.eos, tokenizer.bos) == (0, 1)


def test_data_eos_names_the_end_of_text(trained, tmp_path):
    with_changes(trained, called("</s>", "<fin>"))
    with pytest.raises(
        DataError, match=r"no end-of-text token with a known name.*data\.eos=TOKEN.*'<fin>', '<s>'"
    ):
        open_tokenizer(trained)
    assert vocabulary_size(trained) == open_tokenizer(trained, eos="<fin>").vocab_size
    by_name, by_number, other = (open_tokenizer(trained, eos=eos) for eos in ("<fin>", "0", "<s>"))
    assert by_name.eos == by_number.eos == 0 and by_name.fingerprint == by_number.fingerprint
    assert other.eos == 1 and other.fingerprint != by_name.fingerprint
    (tmp_path / "a.txt").write_text("one <fin> two")
    recipe = Recipe(source="text", path=str(tmp_path / "a.txt"), tokenizer=trained, eos="<fin>")
    manifest = prepare(recipe, tmp_path / "out", 1, progress=False)
    assert manifest.tokenizer["eos"] == 0 and manifest.recipe["eos"] == "<fin>"
    assert open_tokenizer(f"{PREPARED}{tmp_path / 'out'}").eos == 0  # meta.json has it
    [store] = manifest.open_stores(tmp_path / "out")
    assert np.flatnonzero(store.document(0) == 0).tolist() == [len(store.document(0)) - 1]


@pytest.mark.parametrize("eos", ["<fim>", "4000", "99999999999999999999", ""])
def test_the_error_for_a_missing_end_of_text_lists_candidates(trained, eos):
    with pytest.raises(DataError, match=rf"data\.eos='{eos}': must be the text or the id of a token.*'</s>'"):
        open_tokenizer(trained, eos=eos)


def test_data_eos_applies_only_to_a_file():
    with pytest.raises(DataError, match=r"data\.eos='</s>': applies only to a tokenizer\.json"):
        open_tokenizer("bytes", eos="</s>")


def test_a_special_token_comes_before_an_ordinary_one_of_a_known_name(trained):
    """A vocabulary may have the HTML tag </s> as a piece, and end texts with <eos>."""

    def change(content):
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "</s>"]
        called("<s>", "<eos>")(content)

    assert open_tokenizer(with_changes(trained, change)).eos == 1


def test_a_recipe_without_eos_has_no_such_key():
    assert "eos" not in Recipe(source="text", path="a").as_dict()


def test_an_end_of_text_that_is_a_piece_of_the_model_is_spelled_out(tmp_path):
    """A unigram model returns the end-of-text token itself for a text that spells it."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "</s>ab")], 0))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = open_tokenizer(str(tmp_path / "tokenizer.json"))
    tokens = ours.encode("a</s>b</s>")
    assert ours.eos == 1 and 1 not in tokens
    assert [tokenizer.id_to_token(token) for token in tokens] == [*"a</s>b</s>"]


def test_dropout_is_turned_off(trained):
    tokens = open_tokenizer(trained).encode(TEXT).tolist()
    with_changes(trained, lambda content: content["model"].update(dropout=0.9))
    assert open_tokenizer(trained).encode(TEXT).tolist() == tokens


def split_by(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda content: content.update(pre_tokenizer=split)


@pytest.mark.parametrize(
    "change",
    [
        split_by("("),
        lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        lambda content: content["model"]["vocab"].update(zz=2**32),
        lambda content: content["model"]["vocab"].update(zz=-1),
        lambda content: content["model"].update(merges=[["q", "zzzz"]]),
        lambda content: content.pop("model"),
        lambda content: content.update(added_tokens=[1]),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(trained, change):
    """Some of these make the library panic, which raises a BaseException."""
    with pytest.raises(DataError, match=r"tokenizer\.json': must be a tokenizer\.json of Hugging Face"):
        open_tokenizer(with_changes(trained, change))


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff", b"[" * 200_000, b"\xef\xbb\xbf{}"])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"must be a tokenizer\.json of Hugging Face"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))


def test_token_ids_have_a_limit(trained):
    with_changes(trained, lambda content: content["model"]["vocab"].update(zz=2**32 - 1))
    with pytest.raises(
        DataError, match=r"has the token id 4,294,967,295; token ids must be below 16,777,216"
    ):
        vocabulary_size(trained)


def test_another_token_with_the_id_of_the_end_of_text_is_refused(trained):
    with_changes(trained, lambda content: content["model"]["vocab"].update(h=0))
    with pytest.raises(
        DataError, match="all have the id 0; the end-of-text token must have an id that no other token has"
    ):
        open_tokenizer(trained)


@pytest.mark.parametrize(
    "change",
    [
        split_by("(a+)+$"),
        lambda content: content.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        lambda content: content.update(model={"type": "WordLevel", "vocab": {"</s>": 0}, "unk_token": "?"}),
    ],
)
def test_a_tokenizer_that_fails_on_a_text_raises_encode_error(trained, change):
    tokenizer = open_tokenizer(with_changes(trained, change))
    with pytest.raises(EncodeError, match="the tokenizer fails on this text"):
        tokenizer.encode("a" * 40 + "b")


def test_a_warning_if_unknown_characters_are_dropped(trained, caplog):
    with_changes(trained, lambda content: content.update(pre_tokenizer=None))
    with caplog.at_level(logging.WARNING):
        assert open_tokenizer(trained).encode("日本").size == 0
    assert "not in its vocabulary are dropped" in caplog.text


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".json", "~nobody_of_this_name/tokenizer.json", "a\0b.json", "."]
)
def test_paths_that_the_system_refuses(name):
    with pytest.raises(DataError, match=r"data\.tokenizer="):
        open_tokenizer(name)
