"""The tokenizer of a run as transformers loads it: tokenizer.json and tokenizer_config.json.

AutoTokenizer then encodes a text as training did: the same tokens, a beginning-of-text
token only where training had one, and ordinary tokens for a text that spells a special token.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lhtrain.data import DataError
from lhtrain.data.tokenizers.base import END_OF_TEXT, Tokenizer
from lhtrain.data.tokenizers.bpe import HuggingFaceTokenizer, TiktokenTokenizer
from lhtrain.data.tokenizers.bytes import ByteTokenizer
from lhtrain.data.tokenizers.named import open_tokenizer
from lhtrain.errors import RunError
from lhtrain.interop import bpe

NONE = "none"

# Texts that are compared at every export: words, spaces in every arrangement, scripts, numbers.
SAMPLES = (
    "It's 3 o'clock, isn't it? THEY'LL see.",
    "def f(x):\n\treturn  x + 1   # twice\n\n\n    pass\r\n  ",
    " leading and trailing  ",
    "日本語のテキスト、한국어, Ελληνικά, עברית, नमस्ते",
    "naïve café\u0301 ﬁ ſ İ \u00a0\u2003\u3000 👩‍👩‍👧 \ufeff",
    "1234567890 3.14159 1,000,000 ²³ Ⅷ",
    "aaaaaaaaaaaaa =========== -----------",
)


@dataclass(frozen=True)
class ExportedTokenizer:
    """eos, bos: the tokens that end and begin a document, None where there is none or it is not known.
    content: of tokenizer.json; None where the tokenizer cannot be had, which `notes` explains.
    original: text of the file that it was read from, where nothing had to be changed.
    spelt: whether a text that spells a special token is ordinary text, as in training."""

    name: str
    vocab_size: int | None
    eos: int | None
    bos: int | None
    content: dict[str, Any] | None = None
    original: str | None = None
    spelt: bool = True
    notes: tuple[str, ...] = ()

    def file(self) -> str:
        """Text of tokenizer.json."""
        return self.original or json.dumps(self.content, ensure_ascii=False) + "\n"

    def text(self, token: int | None) -> str | None:
        """How tokenizer.json spells `token`."""
        assert self.content is not None
        return _names_of_tokens(self.content).get(token)

    def config(self, longest: int) -> dict[str, Any]:
        """tokenizer_config.json, as transformers 4.57 and 5 read it; longest: tokens of a sequence."""
        assert self.content is not None
        out = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": longest,
            "eos_token": self.text(self.eos),
            # transformers 5 and llama.cpp go by these two, transformers 4 by the post-processor.
            "add_bos_token": self.bos is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # as in training: a text that spells a special token is text
        }
        if self.bos is not None:
            out["bos_token"] = self.text(self.bos)
        # transformers 4 sets the pre-tokenizer's own flag to this one, which it takes for false if absent.
        if "add_prefix_space" in (pre_tokenizer := self.content.get("pre_tokenizer") or {}):
            out["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
        return out


def exported_tokenizer(state: dict[str, Any], copy: Path, given: str | None = None) -> ExportedTokenizer:
    """The tokenizer of a checkpoint's run.

    Args:
        state: of the checkpoint.
        copy: the tokenizer.json that the run kept; it need not be there.
        given: a tokenizer.json to take; NONE leaves it out.

    Raises:
        RunError: a tokenizer.json that is not the one of the run; `given` is no tokenizer.json.
    """
    data = state["config"]["data"]
    recorded: dict[str, Any] | None = state.get("tokenizer")
    name = recorded["name"] if recorded else data["tokenizer"]
    known = {"vocab_size": None, "eos": None, "bos": None} | (recorded or {})
    absent = ExportedTokenizer(name, known["vocab_size"], known["eos"], known["bos"])
    if given == NONE:
        return absent
    bos = known["bos"] is not None if recorded else bool(data.get("bos"))
    eos = str(known["eos"]) if recorded else data.get("eos")
    places = [given] if given else [*([str(copy)] if copy.is_file() else []), name]
    others, faults = [], []
    for place in places:
        try:
            tokenizer = open_tokenizer(place, bos, eos if place.lower().endswith(".json") else None)
        except DataError as error:
            faults.append(str(error))
            continue
        if recorded and tokenizer.fingerprint != recorded["hash"]:
            others.append(place)
            continue
        return _exported(name, tokenizer, unchecked=not recorded)
    if others:
        raise RunError(
            f"tokenizer={others[0]}: must be the one that the run was trained with, and its content is "
            "another; give the original as tokenizer=FILE, or export without one by tokenizer=none"
        )
    if given:
        raise RunError(f"tokenizer={given}: must be the tokenizer.json of the run ({faults[0]})")
    note = f"no tokenizer is exported: {faults[0]}; with the file at hand, add tokenizer=FILE"
    return replace(absent, notes=(note,))


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of a tokenizer.json that gives the tokens of `tokenizer`, its bos in front if it has one."""
    if isinstance(tokenizer, ByteTokenizer):
        content = bpe.of_bytes(END_OF_TEXT, tokenizer.eos)
    elif isinstance(tokenizer, TiktokenTokenizer):
        content = bpe.of_tiktoken(tokenizer.encoding)
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        content = json.loads(tokenizer.fast.to_str())  # with the specials that training marked as such
        content["truncation"] = content["padding"] = None  # of a text; training had none either
    bos = tokenizer.bos
    keeps = _byte_level(content.get("post_processor"))  # trims offsets and adds nothing
    if bos is None:
        content["post_processor"] = keeps
    else:
        begin = _begin_with(bos, _names_of_tokens(content)[bos])
        both = {"type": "Sequence", "processors": [keeps, begin]}
        content["post_processor"] = both if keeps else begin
    return content


def _original(tokenizer: Tokenizer, content: dict[str, Any]) -> str | None:
    """Text of the file of `tokenizer`, if `content` is no other than what it holds."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    text = tokenizer.path.read_text(encoding="utf-8")
    return text if json.loads(type(tokenizer.fast).from_str(text).to_str()) == content else None


def _exported(name: str, tokenizer: Tokenizer, unchecked: bool) -> ExportedTokenizer:
    """The tokenizer as it is exported, checked with `SAMPLES`. Raises RunError: it gives other tokens."""
    content = tokenizer_json(tokenizer)
    same = _comparison(content, tokenizer)
    for text in SAMPLES:
        if not same(text):
            raise RunError(
                f"tokenizer={name}: the tokenizer.json made of it gives other tokens for {text!r}; "
                "export without one by tokenizer=none"
            )
    notes, names = [], _names_of_tokens(content)
    if unchecked and isinstance(tokenizer, HuggingFaceTokenizer):
        notes.append(f"the checkpoint does not record its tokenizer: {tokenizer.name} was taken unchecked")
    ends = [names[token] for token in (tokenizer.eos, tokenizer.bos) if token is not None]
    others = [text for text in dict.fromkeys(ends) if not same(f"{text} a{text}")]
    if others:
        notes.append(
            f"a text that spells {others[0]} was ordinary text in training; the exported tokenizer makes it "
            "the special token, since it is a piece of the vocabulary"
        )
    original = _original(tokenizer, content)
    ids = tokenizer.vocab_size, tokenizer.eos, tokenizer.bos
    return ExportedTokenizer(name, *ids, content, original, not others, tuple(notes))


def _comparison(content: dict[str, Any], tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Whether a tokenizer.json gives the tokens of `tokenizer` for a text, with its bos in front."""
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_str(json.dumps(content))
    fast.encode_special_tokens = True
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    return lambda text: fast.encode(text).ids == begin + tokenizer.encode(text).tolist()


def _byte_level(post_processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of a post-processor that adds no tokens, if there is one."""
    parts = (post_processor or {}).get("processors", [post_processor])
    return next((part for part in parts if part and part["type"] == "ByteLevel"), None)


def _begin_with(bos: int, name: str) -> dict[str, Any]:
    """A post-processor that puts `bos` before each text, as llama's does."""

    def text(sequence: str, number: int) -> list[dict[str, Any]]:
        begin = {"SpecialToken": {"id": name, "type_id": number}}
        return [begin, {"Sequence": {"id": sequence, "type_id": number}}]

    special = {name: {"id": name, "ids": [bos], "tokens": [name]}}
    one = text("A", 0)
    two = one + text("B", 1)
    return {"type": "TemplateProcessing", "single": one, "pair": two, "special_tokens": special}


def _names_of_tokens(content: dict[str, Any]) -> dict[int | None, str]:
    """Every token's text, of a tokenizer.json."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        names: dict[int | None, str] = {number: text for text, number in vocabulary.items()}
    else:  # Unigram: pairs of text and score
        names = {number: text for number, (text, _) in enumerate(vocabulary)}
    return names | {token["id"]: token["content"] for token in content["added_tokens"]}
