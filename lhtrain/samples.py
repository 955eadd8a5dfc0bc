"""Text from a model: for a prompt of the user, and samples during a run."""

from collections.abc import Iterator
from typing import Any

import torch

from lhtrain.attention.dense import FULL_ATTENTION
from lhtrain.build import Engine
from lhtrain.conf.schema import Config
from lhtrain.data import DataError
from lhtrain.data.tokenizers.base import Tokenizer
from lhtrain.data.tokenizers.stream import TextStream
from lhtrain.evaluation.judge import plainly
from lhtrain.model.decoder import GPT
from lhtrain.model.generate import Sampler, stream
from lhtrain.registry import ATTENTIONS
from lhtrain.stage import Stage


def prompt_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a prompt as a document in training begins; for no text, those before a document.

    Raises DataError: the tokenizer fails on the text.
    """
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    return begin + tokenizer.encode(text).tolist() or [tokenizer.eos]


class Generation:
    """Generates text. Iterate to get its parts, each as soon as its characters are complete.

    `n_tokens` and `ended` are up to date after each part.

    Args:
        model: the model, with the attention that it should use: full or strictly causal.
        tokenizer: of the model.
        prompt: tokens, at least one.
        n: most tokens to generate.
        seq_len: the sequence length of training, for strictly causal layers.
        sampler: draws the tokens.

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
    ):
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.n, self.seq_len, self.sampler = n, seq_len, sampler
        self.n_tokens = 0  # generated so far, without the end of text
        self.ended = False  # whether an end of text came

    def __iter__(self) -> Iterator[str]:
        device = self.model.embedding.weight.device
        prompt = torch.tensor([self.prompt], device=device)
        text = TextStream(self.tokenizer, self.prompt)
        for tokens in stream(self.model, prompt, self.n, self.seq_len, self.sampler):
            token = int(tokens[0])
            if token == self.tokenizer.eos:
                self.ended = True
                break
            self.n_tokens += 1
            yield text.add(token)
        yield text.finish()


class LoopSamples:
    """Samples during a run: texts for `samples.prompts`. Every rank computes all of them.

    Stages whose layers write one token at a time (`Stage.decodes`) use these, all other stages full
    attention, which all weights can use.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, engine: Engine):
        self.config, self.tokenizer, self.engine = config.samples, tokenizer, engine
        self.seed, self.backend = config.run.seed, config.lighthouse.backend

    def due(self, step: int, stage_ends: bool) -> bool:
        """Return whether samples are written after this step."""
        return bool(self.config.prompts) and (stage_ends or step % self.config.every == 0)

    def write(self, stage: Stage) -> list[dict[str, Any]]:
        """Return a row of samples.jsonl for each prompt. A collective."""
        attend, kind, rows = FULL_ATTENTION, "full", []
        if stage.decodes:
            attend, kind = ATTENTIONS[stage.attention].of(stage, self.backend), "strict"
        model = self.engine.model
        with plainly(model):
            model.attend_with(attend, dense_layers=stage.dense_layers)  # on each rank to whole sequences
            for prompt in self.config.prompts:
                text = self._text(prompt, stage.seq_len)
                row = {"prompt": prompt, "text": text, "attention": kind, "seed": self.seed}
                rows.append(row | {"temperature": self.config.temperature, "top_p": self.config.top_p})
        return rows

    def _text(self, prompt: str, seq_len: int) -> str | None:
        """Return a text; None if the logits are not finite or the tokenizer has no such token.

        Ranks that share weights do the same number of passes, so the end of a text does not end its passes.
        """
        alone = not self.engine.mesh.world.is_distributed
        sampler = Sampler(self.config.temperature, self.config.top_p, self.seed, self.tokenizer.vocab_size)
        new: list[int] = []
        try:
            start = torch.tensor([prompt_tokens(self.tokenizer, prompt)])
            start = start.to(self.engine.mesh.world.device)
            for tokens in stream(self.engine.model, start, self.config.tokens, seq_len, sampler):
                new.append(int(tokens[0]))
                if alone and new[-1] == self.tokenizer.eos:
                    break
            end = new.index(self.tokenizer.eos) if self.tokenizer.eos in new else len(new)
            return self.tokenizer.decode(new[:end])
        except (ValueError, DataError):
            return None
