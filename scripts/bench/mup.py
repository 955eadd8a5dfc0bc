"""Sweeps the learning rate at several widths, with and without muP.

    python scripts/bench/mup.py TEXT_FILE --out scripts/bench/results/mup.csv
    python scripts/bench/mup.py TEXT_FILE --out mup.csv --device cuda --steps 100 --batch 16 --seeds 0 1 2

Each model learns the bytes of TEXT_FILE for a few steps, all of one seed in the same order. A row of the CSV
is one run; the loss is the mean training loss of the last quarter of its steps, in nats per byte. The heads
have 32 dims at each width. Rows that the file already has are not computed again.
"""

import argparse
import csv
from datetime import date
from itertools import product
from pathlib import Path

import torch

from lhtrain.conf.schema import ModelConfig, OptimConfig
from lhtrain.model.decoder import GPT
from lhtrain.model.mup import width_ratio
from lhtrain.model.optimizer import AdamW
from lhtrain.provenance import cpu_name

WIDTHS, BASE = (128, 256, 512, 1024), 128
RATES = [2.0**-n for n in (8, 9, 7, 10, 6, 11)]  # the most interesting first
COLUMNS = (
    "kind", "init_std", "width", "lr", "seed", "loss", "steps", "tokens_per_step", "layers", "torch",
    "device", "date",
)  # fmt: skip
SEQ_LEN = 128


def run(kind: str, width: int, lr: float, seed: int, text: torch.Tensor, given: argparse.Namespace) -> float:
    """Train one model; return its loss. seed: of the initial weights and of the order of the data."""
    heads, steps, layers, device = width // 32, given.steps, given.layers, text.device
    model_config = ModelConfig(
        name="sweep", seq_len=SEQ_LEN, vocab_size=256, dim=width, n_layers=layers, n_heads=heads,
        n_kv_heads=heads, head_dim=32, ffn_dim=2 * width, init_std=given.init_std,
    )  # fmt: skip
    optim = OptimConfig(mup=kind == "mup", mup_base_width=BASE, weight_decay=0.1)
    model = GPT(model_config).to(device)
    model.init_weights(seed, width_ratio=width_ratio(optim, model_config))
    optimizer, skip = AdamW(model, optim), torch.zeros((), device=device)
    draw, losses = torch.Generator().manual_seed(seed + 1), []
    for step in range(steps):
        begins = torch.randint(len(text) - SEQ_LEN - 1, (given.batch,), generator=draw)
        rows = torch.stack([text[begin : begin + SEQ_LEN + 1] for begin in begins.tolist()]).long()
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        warm, left = min(1.0, (step + 1) / (steps // 10)), 1 - step / steps
        optimizer.step(lr * warm * left, skip)
        optimizer.zero_grad()
        losses.append(loss.detach())  # the host does not wait
    return torch.stack(losses[-(steps // 4) :]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", default=["mup", "standard"])
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--batch", type=int, default=4, help=f"sequences of {SEQ_LEN} bytes in a step")
    parser.add_argument("--init-std", type=float, default=0.02, help="model.init_std")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    text = torch.frombuffer(bytearray(given.text.read_bytes()), dtype=torch.uint8).to(given.device)
    device = torch.cuda.get_device_name() if given.device == "cuda" else cpu_name()
    rows = list(csv.DictReader(given.out.open())) if given.out.exists() else []
    keys = ("kind", "init_std", "width", "lr", "seed", "steps", "tokens_per_step")
    done = {tuple(row[key] for key in keys) for row in rows}
    with given.out.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not rows:
            writer.writerow(COLUMNS)
        for seed, kind, width, lr in product(given.seeds, given.kinds, given.widths, given.rates):
            mine, length = [kind, given.init_std, width, lr, seed], [given.steps, given.batch * SEQ_LEN]
            if tuple(map(str, [*mine, *length])) not in done:
                loss = run(kind, width, lr, seed, text, given)
                about = given.layers, torch.__version__, device, date.today()
                writer.writerow([*mine, f"{loss:.4f}", *length, *about])
                file.flush()


if __name__ == "__main__":
    main()
