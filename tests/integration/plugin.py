"""A module outside the package that adds an attention kind, a scorer, an optimizer and a tracker."""

import json

import torch

from lhtrain.attention import dense_attention
from lhtrain.registry import ATTENTIONS, OPTIMIZERS, SCORERS, TRACKERS
from lhtrain.report.trackers import Tracker


@ATTENTIONS.add("chunked")
class Chunked:
    """Each token attends to the tokens before it in its own chunk."""

    def __init__(self, width):
        self.width = width

    @classmethod
    def of(cls, stage, backend):
        return cls(stage.options["width"])

    def __call__(self, q, k, v, where):
        q, k, v = (x.unflatten(1, (-1, self.width)).flatten(0, 1) for x in (q, k, v))
        return (
            dense_attention(q, k, v)
            .unflatten(0, (-1, where.rotation[0].shape[0] // self.width))
            .flatten(1, 2)
        )


@SCORERS.add("weighted")
class Weighted(torch.nn.Module):
    """The norms, times a weight for each head of keys and values: a scorer with parameters."""

    def __init__(self, model):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(model.n_kv_heads))

    def scores(self, q, k):
        qk = q.float().norm(dim=-1).unflatten(-1, (k.shape[2], -1)).amax(-1)
        kq = k.float().norm(dim=-1)
        return tuple((scores * self.weight).transpose(1, 2) for scores in (qk, kq))


@OPTIMIZERS.add("sgd")
class SGD:
    """With momentum."""

    state_bytes = 4

    def __init__(self, model, config):
        self.momentum = config.options["momentum"]
        self.parameters = list(model.parameters())
        self.velocity = {parameter: torch.zeros_like(parameter) for parameter in self.parameters}

    @torch.no_grad()
    def step(self, lr, skip):
        for parameter in self.parameters:
            if parameter.grad is not None:
                velocity = self.velocity[parameter]
                velocity.mul_(self.momentum).add_(torch.where(skip > 0, 0.0, parameter.grad))
                parameter.add_(velocity, alpha=-lr)

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def state_of(self, parameter):
        return {"velocity": self.velocity[parameter]}


@TRACKERS.add("lines")
class Lines(Tracker):
    """A line for each row, in a file of the run."""

    def __init__(self, config, name, run_dir, settings):
        self.path = run_dir / config.options["file"]

    def log(self, row):
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, summary):
        self.log({"finished": summary is not None})
