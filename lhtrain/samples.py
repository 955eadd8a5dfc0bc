"""Text from a model: generated for a prompt, and given as soon as its characters are whole."""

from collections.abc import Iterator

import torch

from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.data.tokenizers.stream import TextStream
from lhtrain.model.decoder import GPT
from lhtrain.model.generate import Sampler, stream


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a prompt as a document in training begins; for no text, those before a document.

    Raises DataError: the tokenizer fails on the text.
    """
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    return begin + tokenizer.encode(text).tolist() or [tokenizer.eos]


class Generation:
    """Generates text. Iterate to get its parts; `n_tokens` and `ended` are up to date after each.

    Args:
        model: the model, with the attention that it should use: full or strictly causal.
        tokenizer: of the model.
        prompt: tokens, at least one.
        n: most tokens to generate.
        seq_len: the sequence length of training, for strictly causal layers.
        sampler: draws the tokens.
        to_the_end: compute n tokens even if an end of text comes before. Ranks that share weights must do
            the same number of passes.

    Raises (when iterated):
        ValueError: the output of a layer depends on later tokens, or the logits are not finite.
        DataError: the tokenizer has no such token.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt: list[int],
        n: int,
        seq_len: int,
        sampler: Sampler,
        to_the_end: bool = False,
    ):
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.n, self.seq_len, self.sampler, self.to_the_end = n, seq_len, sampler, to_the_end
        self.n_tokens = 0  # generated so far, without the end of text
        self.ended = False  # whether an end of text came

    def __iter__(self) -> Iterator[str]:
        device = self.model.embedding.weight.device
        prompt = torch.tensor([self.prompt], device=device)
        text = TextStream(self.tokenizer, self.prompt)
        for tokens in stream(self.model, prompt, self.n, self.seq_len, self.sampler):
            token = int(tokens[0])
            self.ended = self.ended or token == self.tokenizer.eos
            if self.ended and not self.to_the_end:
                break
            if not self.ended:
                self.n_tokens += 1
                yield text.add(token)
        yield text.finish()
