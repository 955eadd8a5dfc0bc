"""Which exact window, scorer and mask serve best? Branches of one run, compared at equal data.

A model trains on short sequences with full attention. From that snapshot each branch trains at the full
length with its own attention, then recovers with full attention while the learning rate falls to zero. Every
branch reads the same tokens. A row has the validation loss at the full length under the branch's own
attention, under full attention before the recovery, and after it, and the seconds of both parts.

    python scripts/bench/study.py --csv scripts/bench/results/study.csv data=text data.path=FOLDER
    python scripts/bench/study.py --tiny --branches full,window_512 data=text data.path=FOLDER   on a CPU
"""

import argparse
import csv
import datetime
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lhtrain.attention import LighthouseAttention
from lhtrain.attention.where import Attend
from lhtrain.attention.windowed import merge_window
from lhtrain.build import Data, Engine, add_scorers, build_data, build_engine
from lhtrain.checkpoint.tensors import tensors_of
from lhtrain.compute.device import pick_device
from lhtrain.compute.fill import filled
from lhtrain.conf.compose import check_overrides
from lhtrain.conf.schema import Config
from lhtrain.distributed.mesh import Mesh
from lhtrain.distributed.world import World, close, find_ranks
from lhtrain.evaluation import validation_loss, warm_up
from lhtrain.kernels import ops
from lhtrain.registry import ATTENTIONS
from lhtrain.stage import Stage
from lhtrain.step import update

MODEL = [
    "model.dim=512",
    "model.n_layers=12",
    "model.n_heads=4",
    "model.ffn_dim=1376",
]
MODEL += ["model.seq_len=32768", "model.dense_layers=[]", "optim.lr=1e-3", "run.batch_tokens=32768"]
TINY = ["model.dim=32", "model.n_layers=2", "model.n_heads=2", "model.ffn_dim=64", "model.seq_len=4096"]
TINY += ["run.batch_tokens=4096", "run.device=cpu", "model.dense_layers=[]", "optim.lr=1e-3"]
EVAL_TOKENS = 262_144
COLUMNS = ["branch", "seed", "seq_len", "short_steps", "long_steps", "recovery_steps", "own_loss"]
COLUMNS += ["full_loss_before", "full_loss_after", "long_seconds", "recovery_seconds", "gpu", "torch", "date"]

BRANCHES: dict[str, dict] = {  # settings of the Lighthouse stage that differ from the published layer
    "full": {"attention": "dense"},
    "published": {},
    "window_512": {"window": 512},
    "window_128": {"window": 128},
    "window_2048": {"window": 2048},
    "window_512_dilated": {"window": 512, "scorer": "dilated"},
    "window_512_gla": {"window": 512, "scorer": "gla"},
    "window_512_position": {"window": 512, "scorer": "position"},
    "window_512_recent": {"window": 512, "scorer": "recent"},
    "strict_512": {"window": 512, "strictly_causal": True},
    "strict_512_position": {"window": 512, "strictly_causal": True, "scorer": "position"},
    "window_512_alone": {"window": 512, "variant": "alone"},
    "window_512_masked": {"window": 512, "variant": "masked"},
    "window_512_sized": {"window": 512, "variant": "sized"},
    "window_512_masked_sized": {"window": 512, "variant": "masked sized"},
}
TILE = 16  # of strictly causal branches


@dataclass(frozen=True)
class Variant:
    """Windowed Lighthouse with another far part, in plain PyTorch and with norm scores; needs a GPU.

    kind: words of "alone" (no far part: the window is all), "masked" (a row sees only rows whose window ends
    before its own local window begins), "sized" (a pooled key counts as often as it has tokens).
    """

    layer: LighthouseAttention
    kind: str

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, where: object = None) -> Tensor:
        pyramid, window = self.layer.pyramid(q.shape[1]), self.layer.window
        sizes = pyramid.levels, pyramid.pooling, pyramid.budget
        indices, row_of_entry = ops.select_by_norm(q, k, *sizes, len(q))
        rows_q, rows_k, rows_v = ops.gather_selected(q, k, v, row_of_entry, pyramid.n_selected, *sizes)
        level = sum((indices >= pyramid.offset(n)).long() for n in range(1, pyramid.levels))
        offsets = torch.tensor([pyramid.offset(n) for n in range(pyramid.levels)], device=q.device)
        size = pyramid.pooling**level
        last = (indices - offsets[level] + 1) * size - 1  # (B, H, S)
        scores = torch.einsum("bshd,bthd->bhst", rows_q, rows_k).float() * q.shape[-1] ** -0.5
        if "sized" in self.kind:
            scores = scores + size.float().log().unsqueeze(-2)
        reach = window if "masked" in self.kind else 0
        seen = last.unsqueeze(-2) <= last.unsqueeze(-1) - reach
        if not reach:
            seen = torch.ones_like(seen[:1, :1]).tril()
        if "alone" in self.kind:
            seen = torch.zeros_like(seen)
        empty = ~seen.any(-1, keepdim=True)
        scores = scores.masked_fill(~(seen | empty), -torch.inf)
        lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf)
        out = torch.einsum("bhst,bthd->bshd", scores.softmax(-1).to(v.dtype), rows_v)
        return merge_window(q, k, v, out, lse, row_of_entry, pyramid, window, kernels=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--branches", default=",".join(BRANCHES), help="names, with commas between them")
    parser.add_argument("--steps", default="300,120,12", help="short, long and recovery steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a model for a CPU")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    overrides = [*(TINY if arguments.tiny else MODEL), "stage=curriculum", f"run.seed={arguments.seed}"]
    config = check_overrides([*overrides, *arguments.overrides], n_ranks=1)
    world = World.start(pick_device(config.run.device), config.parallel.timeout)
    config = filled(config, find_ranks().size, None)
    Study(config, world, [int(n) for n in arguments.steps.split(",")], arguments).run()
    close()
    return 0


class Study:
    """One model, its snapshot after the short stage, and the branches from there."""

    def __init__(self, config: Config, world: World, steps: list[int], arguments: argparse.Namespace):
        self.config, self.world, self.steps, self.arguments = config, world, steps, arguments
        mesh = Mesh(config.parallel, config.model, config.lighthouse.selection, world)
        self.data: Data = build_data(config, mesh)
        self.engine: Engine = build_engine(config, mesh)
        self.position = 0
        if world.device.type == "cuda":
            torch._dynamo.config.recompile_limit = 256  # every branch is a further version of the block

    def run(self) -> None:
        short, long, recovery = self.steps
        stages = self.engine.stages
        warm_up(self.engine, [stages["short"], stages["recovery"]], 0.0)
        self.train(stages["short"], short, lambda step: min(1.0, (step + 1) / (0.1 * short)))
        snapshot = {name: x.clone() for name, x in self.tensors().items()}
        position = self.position
        print(f"{'branch':<24} own     full before  after   long s  recovery s", flush=True)
        for name in self.arguments.branches.split(","):
            stage = self.stage(name)
            self.engine.attention[name] = self.attention(stage)
            for key, tensor in self.tensors().items():
                if key in snapshot:
                    tensor.copy_(snapshot[key])
            warm_up(self.engine, [stage], 0.0)
            self.position = position
            seconds = self.train(stage, long, lambda step: 1.0)
            own, before = self.loss(stage), self.loss(stages["recovery"])
            falling = self.train(stages["recovery"], recovery, lambda step: 1 - step / recovery)
            after = self.loss(stages["recovery"])
            losses = f"{own:.4f}  {before:.4f}       {after:.4f}"
            print(f"{name:<24} {losses}  {seconds:>6.1f}  {falling:.1f}", flush=True)
            about = [name, self.config.run.seed, stage.seq_len, *self.steps]
            self.write([*about, own, before, after, seconds, falling])

    def tensors(self) -> dict[str, torch.Tensor]:
        return tensors_of(self.engine.model, self.engine.optimizer)

    def stage(self, name: str) -> Stage:
        """The branch's stage at the full length."""
        settings = {key: value for key, value in BRANCHES[name].items() if key != "variant"}
        published = self.engine.stages["lighthouse"]
        if settings.get("attention") == "dense":
            return replace(self.engine.stages["recovery"], name=name)
        if settings.get("strictly_causal"):
            assert published.pyramid is not None
            settings["pyramid"] = replace(published.pyramid, tile=TILE)
        return replace(published, name=name, **settings)

    def attention(self, stage: Stage) -> Attend:
        if stage.pyramid is not None:
            add_scorers(self.engine.model, {stage.name: stage})
            self.engine.model.to(self.world.device)
        attend = ATTENTIONS[stage.attention].of(stage, self.config.lighthouse.backend)
        variant = BRANCHES[stage.name].get("variant")
        return Variant(attend, variant) if variant else self.engine.mesh.attention(attend)

    def train(self, stage: Stage, steps: int, scale: Callable[[int], float]) -> float:
        """Train so many steps; returns the seconds. scale: of the learning rate, by step."""
        engine, optim = self.engine, self.config.optim
        engine.enter(stage)
        self.wait()
        began = time.perf_counter()
        for step in range(steps):
            batches, self.position = self.data.loader.micro_batches(self.position, stage)
            update(engine.model, engine.optimizer, batches, optim.lr * scale(step), optim, engine.mesh)
        self.wait()
        return time.perf_counter() - began

    def loss(self, stage: Stage) -> float:
        self.engine.enter(stage)
        tokens = 8192 if self.arguments.tiny else EVAL_TOKENS
        return validation_loss(
            self.engine, self.data.validation, tokens, stage, self.data.corpus.tokenizer.eos
        )

    def wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize()

    def write(self, values: list) -> None:
        """Append a row, so that what a run of limited time has measured is kept."""
        path = self.arguments.csv
        if path is None:
            return
        device = self.world.device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        values = [round(value, 4) if isinstance(value, float) else value for value in values]
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow([*values, gpu, torch.__version__, datetime.date.today().isoformat()])


if __name__ == "__main__":
    sys.exit(main())
