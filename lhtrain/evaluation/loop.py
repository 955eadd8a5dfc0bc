"""The tasks of `eval.tasks` during a run: what fits into eval.share, and when."""

from dataclasses import asdict, replace
from typing import Any

from lhtrain.build import Data, Engine
from lhtrain.compute.flops import step_flops
from lhtrain.conf.schema import Config
from lhtrain.evaluation.attention import FullAttention, StageAttention, length_problem, stage_at
from lhtrain.evaluation.judge import AttentionAt, Judge, Score
from lhtrain.evaluation.plan import Plan, fitted
from lhtrain.evaluation.result import described
from lhtrain.evaluation.sources import own_texts, validation_texts
from lhtrain.evaluation.tasks import FULL, OWN, measure
from lhtrain.evaluation.texts import Texts
from lhtrain.schedule import Schedule
from lhtrain.stage import Stage

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
        config, every = self.config, self.config.eval.tasks_every
        if step not in self.schedule.ends if every is None else step % every:
            return None
        whole = Plan.of(config.eval, stage.seq_len)
        lengths = tuple(length for length in whole.lengths if length_problem(stage, length) is None)
        whole = replace(whole, lengths=lengths or (stage.seq_len,))
        stages = self.schedule.stages.values()
        run = sum(one.steps * step_flops(config.model, one) for one in stages)
        times = len(self.schedule.ends) if every is None else config.run.steps // every
        if not times or not whole.tasks:
            return None
        return fitted(whole, config.eval.share * PLANNED * run / times, lambda plan: self._cost(plan, stage))

    def measure(self, stage: Stage, plan: Plan, step: int) -> dict[str, Any]:
        """Measure with the weights of now; return the content of eval.json. A collective."""
        texts = self._open_texts()
        results = measure(self._scores(stage), texts, plan)
        return described(results, plan, stage, texts, step)

    def _scores(self, stage: Stage) -> dict[str, Score]:
        engine, mesh = self.engine, self.engine.mesh
        at_once = stage.batch_tokens // stage.grad_accum // mesh.slice.dp_size
        attentions: dict[str, AttentionAt] = {FULL: FullAttention(mesh)}
        if stage.attention != "dense":
            attentions[OWN] = StageAttention(stage, self.config.lighthouse.backend, mesh)
        return {
            name: Judge(engine.model, attention, mesh.world.device, at_once, mesh)
            for name, attention in attentions.items()
        }

    def _cost(self, plan: Plan, stage: Stage) -> float:
        """Return the FLOPs of a measurement in `stage`."""
        full = replace(stage, attention="dense", pyramid=None, window=0, strictly_causal=False)
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
