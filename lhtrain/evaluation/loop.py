"""The tasks of `eval.tasks` during a run: what fits into eval.share, and when."""

import math
from dataclasses import asdict, replace
from typing import Any

from lhtrain.build import Data, Engine
from lhtrain.compute.flops import step_flops
from lhtrain.conf.rules.evaluation import FULL, OWN, extrapolation
from lhtrain.conf.schema import Config
from lhtrain.evaluation.attention import FullAttention, StageAttention, length_problem, stage_at
from lhtrain.evaluation.judge import AttentionAt, Judge, Score
from lhtrain.evaluation.plan import Plan, fitted
from lhtrain.evaluation.result import described
from lhtrain.evaluation.sources import own_texts, validation_texts
from lhtrain.evaluation.tasks import measure
from lhtrain.evaluation.texts import Texts
from lhtrain.schedule import Schedule
from lhtrain.stage import Stage
from lhtrain.text import counted

# Share of eval.share that is planned, counted in FLOPs: passes are not compiled, and their time is more.
PLANNED = 0.5


class LoopTasks:
    """Measures the tasks of a run while it trains.

    What is measured follows from the configuration alone, so that a resumed run and every rank measure the
    same.
    """

    def __init__(self, config: Config, data: Data, engine: Engine) -> None:
        self.config, self.data, self.engine = config, data, engine
        self.schedule = Schedule.of(config)
        self._texts: Texts | None = None

    def plan(self, step: int, stage: Stage) -> Plan | None:
        """Return what is measured after `step` steps, with the attention of `stage`; None: nothing."""
        every = self.config.eval.tasks_every
        if step not in self.schedule.ends if every is None else step % every:
            return None
        return self._fitted(stage)

    def warnings(self) -> list[str]:
        """Return lines on sequences much longer than the context, and on measurements that do not fit."""
        beyond = extrapolation(self.config.eval, max(one.seq_len for one in self.schedule.stages.values()))
        return [*([beyond] if beyond and self.config.eval.tasks else []), *self._without_room()]

    def _without_room(self) -> list[str]:
        """Return a line if eval.tasks_every is set and nothing is measured, in the run or in some stages."""
        config, every = self.config, self.config.eval.tasks_every
        if every is None or not config.eval.tasks:
            return []
        key, steps = f"eval.tasks_every={every}", config.run.steps
        if every > steps:
            return [f"{key}: nothing is measured, because the run has {counted(steps, 'step')}"]
        firsts = [0, *self.schedule.ends]
        due = [
            name
            for name, first, end in zip(self.schedule.names, firsts, self.schedule.ends, strict=False)
            if end // every > first // every
        ]
        without = [name for name in due if self._fitted(self.schedule.stages[name]) is None]
        if not without:
            return []
        share = max(self._least_share(self.schedule.stages[name]) for name in without)
        where = f" in stage {', '.join(without)}" if len(without) < len(due) else ""
        more = f"needs eval.share={share:.3f}, or fewer measurements"
        return [
            f"{key}: nothing is measured{where}, because eval.share={config.eval.share:g} is too small for "
            f"{counted(steps // every, 'measurement')}; {more if share <= 1 else 'needs fewer measurements'}"
        ]

    def _fitted(self, stage: Stage) -> Plan | None:
        """Return what fits into eval.share at each measurement in `stage`; None: nothing."""
        whole = self._whole(stage)
        if not whole.tasks:
            return None
        budget = self.config.eval.share * self._flops_of_run()
        return fitted(whole, budget, lambda plan: self._cost(plan, stage))

    def _whole(self, stage: Stage) -> Plan:
        """Return all that eval.* asks for in `stage`."""
        whole = Plan.of(self.config.eval, stage.seq_len)
        lengths = tuple(length for length in whole.lengths if length_problem(stage, length) is None)
        lengths = lengths or (stage.seq_len,)
        return replace(
            whole,
            lengths=lengths,
            longest=lengths[-1] if whole.longest and lengths[-1] > stage.seq_len else 0,
        )

    def _least_share(self, stage: Stage) -> float:
        """Return the least eval.share with which something is measured in `stage`, rounded up."""
        whole = self._whole(stage)
        least = self._cost(replace(whole, tasks=whole.tasks[:1], samples=1, longest=0), stage)
        return math.ceil(1000 * least / self._flops_of_run()) / 1000

    def _flops_of_run(self) -> float:
        """Return the FLOPs of each measurement if eval.share were 1."""
        every, stages = self.config.eval.tasks_every, self.schedule.stages.values()
        run = sum(one.steps * step_flops(self.config.model, one) for one in stages)
        times = len(stages) if every is None else self.config.run.steps // every
        return PLANNED * run / max(times, 1)

    def measure(self, stage: Stage, plan: Plan, step: int) -> dict[str, Any]:
        """Measure with the weights of now; return the content of eval.json. A collective."""
        texts = self._open_texts()
        results = measure(self._scores(stage), texts, plan)
        return described(results, plan, stage, texts, step)

    def _scores(self, stage: Stage) -> dict[str, Score]:
        engine, mesh = self.engine, self.engine.mesh
        at_once = stage.batch_tokens // stage.grad_accum // mesh.slice.dp_size
        sliding = self.config.model.sliding_window
        attentions: dict[str, AttentionAt] = {FULL: FullAttention(mesh, sliding)}
        if stage.attention != "dense":
            attentions[OWN] = StageAttention(stage, self.config.lighthouse.backend, mesh, sliding)
        return {
            name: Judge(engine.model, attention, mesh.world.device, at_once, mesh)
            for name, attention in attentions.items()
        }

    def _cost(self, plan: Plan, stage: Stage) -> float:
        """Return the FLOPs of a measurement in `stage`."""
        full = replace(
            stage, attention="dense", pyramid=None, window=0, own_queries=False, strictly_causal=False
        )
        total = 0
        for length, count in plan.passes():
            for at in [full] + [stage_at(stage, length) or full] * (stage.attention != "dense"):
                one = replace(at, seq_len=length, batch_tokens=length)
                total += count * step_flops(self.config.model, one) // 3  # the forward pass is a third
        return total

    def _open_texts(self) -> Texts:
        """Open the texts at the first measurement: reading other texts may take long."""
        if self._texts is None:
            config, corpus = self.config, self.data.corpus
            if config.eval.data is None:
                self._texts = validation_texts(corpus, config.eval.seed)
            else:
                with self.engine.mesh.world.first_of_each_machine():
                    data, seed = asdict(config.data), config.eval.seed
                    self._texts = own_texts(config.eval.data, corpus.tokenizer, data, seed)
        return self._texts
