"""`lhtrain data train-tokenizer`: byte-level BPE from the texts of a source, as a tokenizer.json."""

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lhtrain.data.errors import DataError
from lhtrain.data.prepare.plan import make_plan
from lhtrain.data.prepare.recipe import Recipe
from lhtrain.data.progress import on_terminal
from lhtrain.data.sources.documents import Skip
from lhtrain.data.sources.table import READERS
from lhtrain.data.sources.text import NotText
from lhtrain.data.tokenizers.bpe import MAX_TOKENS

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"  # Llama 3's names, which open_tokenizer and others know
LEAST = 256 + 2  # every byte is a token, so that every text can be encoded; and BOS and EOS
LEAST_PAIRS = 2  # times that a pair must occur to become a token
# Where texts are split before merging, as in Llama 3: words with the character before them, up to three
# digits, signs, line breaks, spaces. No token spans two of these.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE_BYTES = 1 << 20  # of text whose tokens are counted after training


@dataclass(frozen=True)
class Trained:
    """A trained tokenizer.

    content: text of its tokenizer.json. bytes_per_token: of the first SAMPLE_BYTES of the texts.
    """

    content: str
    vocab_size: int
    documents: int
    n_bytes: int
    bytes_per_token: float


def train_tokenizer(recipes: list[Recipe], vocab_size: int, max_bytes: int | None = None) -> Trained:
    """Train byte-level BPE on the texts of `recipes`, which are read as `lhtrain data prepare` reads them.

    The result depends on the texts, `vocab_size` and the version of `tokenizers` alone. Memory depends on the
    number of different words, not on the size of the texts.

    Args:
        recipes: the sources, one after the other; their tokenizers are ignored.
        vocab_size: most tokens, LEAST or more; there are fewer if no pair occurs LEAST_PAIRS times any more.
        max_bytes: stop after the document in which this number of bytes of text is reached; None: read all.

    Raises:
        DataError: a problem with a source, no text, or the package `tokenizers` is missing.
    """
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    except ImportError as error:
        raise DataError(
            "train-tokenizer needs the package `tokenizers`: pip install 'lhtrain[hf]'"
        ) from error
    fast = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), level])
    fast.decoder = decoders.ByteLevel()
    fast.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_PAIRS,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=on_terminal(),
    )
    texts = Texts(recipes, max_bytes)
    fast.train_from_iterator(iter(texts), trainer)
    if not texts.n_bytes:
        raise DataError("train-tokenizer: the files have no text; all documents are empty or left out")
    fast.encode_special_tokens = True  # their names in a text are ordinary text, as in training
    counted = [fast.encode(text, add_special_tokens=False) for text in texts.sample]
    per_token = sum(len(text.encode()) for text in texts.sample) / sum(len(one.ids) for one in counted)
    content = json.dumps(json.loads(fast.to_str()), ensure_ascii=False, indent=1) + "\n"
    return Trained(content, fast.get_vocab_size(), texts.documents, texts.n_bytes, per_token)


def vocab_problem(vocab_size: int) -> str | None:
    """Return the rule that a vocabulary size breaks, if any."""
    if not LEAST <= vocab_size < MAX_TOKENS:
        return f"must be from {LEAST} (256 bytes, {BOS} and {EOS}) to {MAX_TOKENS - 1}"
    return None


class Texts:
    """The texts of sources in pieces, to be read once. Counts documents and bytes; keeps the first pieces."""

    def __init__(self, recipes: list[Recipe], max_bytes: int | None):
        self.recipes, self.max_bytes = recipes, max_bytes
        self.documents = self.n_bytes = 0
        self.sample: list[str] = []  # the first SAMPLE_BYTES, or the first piece if it is longer

    def __iter__(self) -> Iterator[str]:
        for recipe in self.recipes:
            first = self.documents
            for chunks in _documents(recipe):
                before = self.n_bytes
                for text in decoded(chunks):
                    self._count(text)
                    yield text
                self.documents += self.n_bytes > before
                if self.max_bytes is not None and self.n_bytes >= self.max_bytes:
                    return
                if self.documents - first == recipe.max_documents:
                    break

    def _count(self, text: str) -> None:
        if self.n_bytes < SAMPLE_BYTES:
            self.sample.append(text)
        self.n_bytes += len(text.encode())


def _documents(recipe: Recipe) -> Iterator[Iterable[bytes]]:
    """Yield the chunks of each document. Raises DataError."""
    for unit in make_plan(recipe):
        for document in READERS[unit.reader].read(unit, recipe, lambda n_bytes: None):
            if not isinstance(document, Skip):
                yield document.chunks


def decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the text of UTF-8 chunks, which may end inside a character; stop at a file that is not text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in itertools.chain(chunks, [b""]):
            if text := decoder.decode(chunk, final=not chunk):
                yield text
    except NotText:  # an empty or binary file in a folder, which `prepare` leaves out too
        return
