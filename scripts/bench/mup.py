"""Sweeps the learning rate at several widths, with and without muP, on a CPU.

    python scripts/bench/mup.py TEXT_FILE --out scripts/bench/results/mup.csv

Each model learns the bytes of TEXT_FILE for a few steps, all in the same order. A row of the CSV is one run;
the loss is the mean training loss of the last quarter of its steps, in nats per byte. The heads have 32 dims
at each width. Rows that the file already has are not computed again.
"""

import argparse
import csv
from datetime import date
from pathlib import Path

import torch

from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.mup import width_ratio
from lhtrain.model.optimizer import AdamW
from lhtrain.provenance import cpu_name

WIDTHS, BASE = (128, 256, 512, 1024), 128
RATES = [2.0**-n for n in (8, 9, 7, 10, 6, 11)]  # the most interesting first
COLUMNS = ("kind", "width", "lr", "loss", "steps", "tokens_per_step", "layers", "torch", "cpu", "date")
BATCH, SEQ_LEN = 4, 128


def run(kind: str, width: int, lr: float, text: torch.Tensor, steps: int, layers: int) -> float:
    """Train one model; return its loss."""
    heads = width // 32
    model_config = ModelConfig(
        name="sweep", seq_len=SEQ_LEN, vocab_size=256, dim=width, n_layers=layers, n_heads=heads,
        n_kv_heads=heads, head_dim=32, ffn_dim=2 * width,
    )  # fmt: skip
    optim = OptimConfig(mup=kind == "mup", mup_base_width=BASE, weight_decay=0.1)
    model = GPT(model_config)
    model.init_weights(0, width_ratio=width_ratio(optim, model_config))
    optimizer, skip, draw = AdamW(model, optim), torch.zeros(()), torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        begins = torch.randint(len(text) - SEQ_LEN - 1, (BATCH,), generator=draw)
        rows = torch.stack([text[begin : begin + SEQ_LEN + 1] for begin in begins.tolist()]).long()
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        warm, left = min(1.0, (step + 1) / (steps // 10)), 1 - step / steps
        optimizer.step(lr * warm * left, skip)
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-(steps // 4) :]) / (steps // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["mup", "standard"])
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    given = parser.parse_args()
    text = torch.frombuffer(bytearray(given.text.read_bytes()), dtype=torch.uint8)
    rows = list(csv.DictReader(given.out.open())) if given.out.exists() else []
    done = {(row["kind"], int(row["width"]), float(row["lr"])) for row in rows}
    with given.out.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not rows:
            writer.writerow(COLUMNS)
        for kind in given.kinds:
            for width in given.widths:
                for lr in given.rates:
                    if (kind, width, lr) in done:
                        continue
                    loss = run(kind, width, lr, text, given.steps, given.layers)
                    about = given.steps, BATCH * SEQ_LEN, given.layers, torch.__version__, cpu_name()
                    writer.writerow([kind, width, lr, f"{loss:.4f}", *about, date.today()])
                    file.flush()


if __name__ == "__main__":
    main()
