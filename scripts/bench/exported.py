"""Compare the loss of a run with that of its exported model in Hugging Face transformers, on the same tokens.

lhtrain export runs/it exported
python scripts/bench/exported.py runs/it exported --texts prepared/val --length 65536
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lhtrain.data import open_corpus
from lhtrain.evaluation.texts import Texts
from lhtrain.model.loss import per_token_losses
from lhtrain.opened import open_trained


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory or checkpoint")
    parser.add_argument("folder", type=Path, help="what `lhtrain export` wrote")
    parser.add_argument("--texts", type=Path, required=True, help="prepared folder")
    parser.add_argument("--length", type=int, default=65536, help="tokens")
    parser.add_argument("--passages", type=int, default=4, help="documents, of which the beginning is read")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = passages(arguments, device)
    for name, losses in (
        ("lhtrain", of_run(arguments.run, tokens, device, dtype)),
        ("transformers", of_folder(arguments.folder, tokens, device, dtype)),
    ):
        last = losses[:, -2048:].mean()
        print(f"{name}: {losses.mean():.5f} over {losses.numel():,} tokens; last 2,048 of each: {last:.5f}")


def passages(arguments: argparse.Namespace, device: torch.device) -> Tensor:
    """Return the beginnings of documents, (n, length + 1) int64."""
    corpus = open_corpus("prepared", str(arguments.texts))
    texts = Texts(corpus.tokenizer, [corpus.train], 0, str(arguments.texts))
    found = texts.passages(arguments.length + 1, arguments.passages)
    if found is None:
        raise SystemExit(f"{arguments.texts}: has no text of {arguments.length + 1:,} tokens")
    return torch.stack([torch.from_numpy(found.build(i)) for i in range(found.n)]).to(device)


@torch.no_grad()
def of_run(path: Path, tokens: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the loss of each token with full attention, (n, length)."""
    opened = open_trained(path, device, dtype)
    model = opened.model
    return torch.stack([losses(model.hidden(row[None, :-1])[0], model.head.weight, row) for row in tokens])


@torch.no_grad()
def of_folder(folder: Path, tokens: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    weight = model.get_output_embeddings().weight
    return torch.stack([losses(model.model(row[None, :-1])[0][0], weight, row) for row in tokens])


def losses(hidden: Tensor, weight: Tensor, row: Tensor) -> Tensor:
    return per_token_losses(hidden, weight, row[1:]).losses


if __name__ == "__main__":
    main()
