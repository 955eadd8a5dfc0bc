"""Exports the tokenizer of a run for transformers: tokenizer.json and tokenizer_config.json.

AutoTokenizer then encodes a text as training did: with the same tokens, with a beginning-of-text token only
if training used one, and with ordinary tokens if a text contains the name of a special token.
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

# Each export compares the tokens of these texts: words, spaces, scripts, numbers.
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
    """The tokenizer as it is exported.

    Attributes:
        name: data.tokenizer of the run.
        vocab_size: number of tokens; None if unknown.
        eos, bos: the tokens that end and begin a document; None if there is none or it is unknown.
        content: content of tokenizer.json; None if no tokenizer is exported.
        original: text of the original tokenizer.json if it needs no change.
        source: the tokenizer.json of training, if it was one.
        spelt: whether the name of a special token in a text is ordinary text, as in training.
        notes: warnings for the user of the folder.
    """

    name: str
    vocab_size: int | None
    eos: int | None
    bos: int | None
    content: dict[str, Any] | None = None
    original: str | None = None
    spelt: bool = True
    notes: tuple[str, ...] = ()
    source: Path | None = None

    def file(self) -> str:
        """Return the text of tokenizer.json."""
        return self.original or json.dumps(self.content, ensure_ascii=False) + "\n"

    def text(self, token: int | None) -> str | None:
        """Return the name of `token` in tokenizer.json; None if it has none."""
        assert self.content is not None
        return _names_of_tokens(self.content).get(token)

    def config(self, longest: int) -> dict[str, Any]:
        """Return the content of tokenizer_config.json for transformers 4.57 and 5.

        longest: length in tokens of the longest training sequences.
        """
        assert self.content is not None
        out = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": longest,
            "eos_token": self.text(self.eos),
            # transformers 5 and llama.cpp read these two keys; transformers 4 uses the post-processor.
            "add_bos_token": self.bos is not None,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # as in training: names of special tokens are ordinary text
        }
        if self.bos is not None:
            out["bos_token"] = self.text(self.bos)
        # transformers 4 overwrites the flag of the pre-tokenizer with this one; a missing one means false.
        if "add_prefix_space" in (pre_tokenizer := self.content.get("pre_tokenizer") or {}):
            out["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
        return out


def exported_tokenizer(state: dict[str, Any], copy: Path, given: str | None = None) -> ExportedTokenizer:
    """Return the tokenizer of the run that wrote a checkpoint.

    If its file cannot be read, the result has no content, and its `notes` have the reason.

    Args:
        state: content of the checkpoint's state.json.
        copy: path of the run's own copy of tokenizer.json, which may not exist.
        given: path of a tokenizer.json to use instead; NONE exports no tokenizer.

    Raises:
        RunError: the file is not the tokenizer of the run; `given` cannot be read; the exported tokenizer
            would give different tokens.
    """
    data = state["config"]["data"]
    recorded: dict[str, Any] | None = state.get("tokenizer")
    name = recorded["name"] if recorded else data["tokenizer"]
    known = {"vocab_size": None, "eos": None, "bos": None} | (recorded or {})
    absent = ExportedTokenizer(str(name), known["vocab_size"], known["eos"], known["bos"])
    if given == NONE:
        note = f"no tokenizer was exported; the model was trained with the tokens of {absent.name}"
        return replace(absent, notes=(note,))
    if name is None and given is None:
        return replace(absent, notes=("no tokenizer is exported: the imported model had no tokenizer.json",))
    try:
        tokenizer = trained_tokenizer(state, copy, given)
    except DataError as fault:
        if given:
            rule = "must be the tokenizer.json of the run, but it cannot be read"
            raise RunError(f"tokenizer={given}: {rule} ({fault})") from fault
        note = f"no tokenizer is exported: {fault}; if you have the file, give it with tokenizer=FILE"
        return replace(absent, notes=(note,))
    return _exported(name, tokenizer, unchecked=not recorded)


def trained_tokenizer(state: dict[str, Any], copy: Path, given: str | None = None) -> Tokenizer:
    """Return the tokenizer of the run that wrote a checkpoint.

    Args:
        state: content of the checkpoint's state.json.
        copy: path of the run's own copy of tokenizer.json, which may not exist.
        given: path of a tokenizer.json to use instead.

    Raises:
        DataError: its file cannot be read.
        RunError: the file is not the tokenizer of the run.
    """
    data = state["config"]["data"]
    recorded: dict[str, Any] | None = state.get("tokenizer")
    name = recorded["name"] if recorded else data["tokenizer"]
    bos = recorded["bos"] is not None if recorded else bool(data.get("bos"))
    eos = str(recorded["eos"]) if recorded else data.get("eos")
    places = [given] if given else [*([str(copy)] if copy.is_file() else []), name]
    others: list[str] = []
    faults: list[DataError] = []
    for place in places:
        try:
            tokenizer = open_tokenizer(place, bos, eos if place.lower().endswith(".json") else None)
        except DataError as error:
            faults.append(error)
            continue
        if recorded and tokenizer.fingerprint != recorded["hash"]:
            others.append(place)
            continue
        return tokenizer
    if others:
        raise RunError(
            f"tokenizer={others[0]}: must be the tokenizer that the run was trained with, but its content "
            "differs; give the original with tokenizer=FILE"
        )
    raise faults[0]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer.json that gives the same tokens as `tokenizer`, after its bos if it has one."""
    if isinstance(tokenizer, ByteTokenizer):
        content = bpe.of_bytes(END_OF_TEXT, tokenizer.eos)
    elif isinstance(tokenizer, TiktokenTokenizer):
        content = bpe.of_tiktoken(tokenizer.encoding)
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        content = json.loads(tokenizer.fast.to_str())  # includes the special tokens that training marked
        content["truncation"] = content["padding"] = None  # training did neither
    bos = tokenizer.bos
    keeps = _byte_level(content.get("post_processor"))  # only trims offsets, adds no tokens
    if bos is None:
        content["post_processor"] = keeps
    else:
        begin = _begin_with(bos, _names_of_tokens(content)[bos])
        both = {"type": "Sequence", "processors": [keeps, begin]}
        content["post_processor"] = both if keeps else begin
    return content


def _original(tokenizer: Tokenizer, content: dict[str, Any]) -> str | None:
    """Return the text of the file of `tokenizer` if its content equals `content`; else None."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    text = tokenizer.path.read_text(encoding="utf-8")
    return text if json.loads(type(tokenizer.fast).from_str(text).to_str()) == content else None


def _exported(name: str, tokenizer: Tokenizer, unchecked: bool) -> ExportedTokenizer:
    """Return the exported tokenizer. Raises RunError if it gives different tokens for one of `SAMPLES`.

    unchecked: whether the checkpoint does not record the hash of its tokenizer.
    """
    content = tokenizer_json(tokenizer)
    same = _comparison(content, tokenizer)
    for text in SAMPLES:
        if not same(text):
            raise RunError(
                f"tokenizer={name}: the converted tokenizer.json must give the same tokens, but differs for "
                f"{text!r}; export no tokenizer with tokenizer=none"
            )
    notes, names = [], _names_of_tokens(content)
    if unchecked and isinstance(tokenizer, HuggingFaceTokenizer):
        notes.append(f"the checkpoint does not record its tokenizer; {tokenizer.name} was used unchecked")
    ends = [names[token] for token in (tokenizer.eos, tokenizer.bos) if token is not None]
    others = [text for text in dict.fromkeys(ends) if not same(f"{text} a{text}")]
    if others:
        notes.append(
            f"{others[0]} inside a text was ordinary text in training; the exported tokenizer turns it into "
            "the special token, because the name is an entry of its vocabulary"
        )
    original = _original(tokenizer, content)
    ids = tokenizer.vocab_size, tokenizer.eos, tokenizer.bos
    source = tokenizer.path if isinstance(tokenizer, HuggingFaceTokenizer) else None
    return ExportedTokenizer(name, *ids, content, original, not others, tuple(notes), source)


def _comparison(content: dict[str, Any], tokenizer: Tokenizer) -> Callable[[str], bool]:
    """Return a function: whether `content` and `tokenizer` give the same tokens for a text, bos included."""
    from tokenizers import Tokenizer as Fast

    fast = Fast.from_str(json.dumps(content))
    fast.encode_special_tokens = True
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    return lambda text: fast.encode(text).ids == begin + tokenizer.encode(text).tolist()


def _byte_level(post_processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the ByteLevel part of a post-processor, which adds no tokens; None if it has none."""
    parts = (post_processor or {}).get("processors", [post_processor])
    return next((part for part in parts if part and part["type"] == "ByteLevel"), None)


def _begin_with(bos: int, name: str) -> dict[str, Any]:
    """Return a post-processor that puts `bos` before each text, as Llama's does."""

    def text(sequence: str, number: int) -> list[dict[str, Any]]:
        begin = {"SpecialToken": {"id": name, "type_id": number}}
        return [begin, {"Sequence": {"id": sequence, "type_id": number}}]

    special = {name: {"id": name, "ids": [bos], "tokens": [name]}}
    one = text("A", 0)
    two = one + text("B", 1)
    return {"type": "TemplateProcessing", "single": one, "pair": two, "special_tokens": special}


def _names_of_tokens(content: dict[str, Any]) -> dict[int | None, str]:
    """Return the name of each token in the content of a tokenizer.json."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        names: dict[int | None, str] = {number: text for text, number in vocabulary.items()}
    else:  # Unigram: pairs of text and score
        names = {number: text for number, (text, _) in enumerate(vocabulary)}
    return names | {token["id"]: token["content"] for token in content["added_tokens"]}
