"""Decoding of tokens that come one at a time, as in generation."""

from lhtrain.data.tokenizers.base import Tokenizer

UNKNOWN = "\ufffd"  # stands for bytes that are not UTF-8, or not yet
MOST = 3  # tokens that a character may have before its last one
CONTEXT = 8  # tokens that are decoded again before the new ones: some decoders join or trim neighbours
WINDOW = 64  # most tokens that are decoded again for a new one, unless none of them ends a character


class TextStream:
    """Gives the text of tokens as soon as it is certain. The parts together are the text of all tokens.

    A character may have several tokens. A U+FFFD at the end may become another character with the next token,
    so it waits, until so many tokens have come that no character can have them all.

    Args:
        tokenizer: decodes.
        prompt: the tokens before the first one; their text is not given.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int]):
        self.tokenizer = tokenizer
        self._tokens = list(prompt[-CONTEXT:])
        while self._text().startswith(UNKNOWN):  # the first token is inside a character
            del self._tokens[0]
        self._given = len(self._text())  # characters of the text of `_tokens` that were given
        self._whole = [len(self._tokens)]  # numbers of tokens at which the text ended with a whole character
        self._waiting = 0  # tokens since the last of these

    def add(self, token: int) -> str:
        """Return the text that is certain with this token; it may be empty."""
        self._tokens.append(token)
        text = self._text()
        if not text.endswith(UNKNOWN):
            new = self._until(text, len(text))
            self._waiting = 0
            self._whole.append(len(self._tokens))
            if len(self._tokens) > WINDOW:
                self._shorten()
            return new
        self._waiting += 1
        if self._waiting <= MOST:
            return ""
        pending = len(text) - len(text.rstrip(UNKNOWN))
        return self._until(text, len(text) - min(pending, MOST))

    def finish(self) -> str:
        """Return the rest of the text, after the last token."""
        text = self._text()
        return self._until(text, len(text))

    def _until(self, text: str, end: int) -> str:
        new = text[self._given : end]
        self._given = max(self._given, end)
        return new

    def _shorten(self) -> None:
        """Drop tokens before the last CONTEXT ones, from where a character begins."""
        start = max((at for at in self._whole if at <= len(self._tokens) - CONTEXT), default=0)
        del self._tokens[:start]
        self._whole = [at - start for at in self._whole if at >= start]
        self._given = len(self._text())

    def _text(self) -> str:
        return self.tokenizer.decode(self._tokens)
