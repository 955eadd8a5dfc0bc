"""All rules on the values of a configuration. Types and names of keys are checked when it is composed."""

from lhtrain.conf.problems import Problem
from lhtrain.conf.rules.batch import batch_problems, count_problems
from lhtrain.conf.rules.cluster import cluster_problems
from lhtrain.conf.rules.compute import compute_problems
from lhtrain.conf.rules.data import all_data_problems
from lhtrain.conf.rules.evaluation import eval_problems
from lhtrain.conf.rules.model import model_problems
from lhtrain.conf.rules.optimizer import optim_problems, pattern_problems
from lhtrain.conf.rules.parallel import parallel_problems
from lhtrain.conf.rules.plugins import option_problems
from lhtrain.conf.rules.run import profile_problems, run_problems
from lhtrain.conf.rules.stage_data import stage_data_problems
from lhtrain.conf.rules.stages import stage_problems
from lhtrain.conf.rules.steps import step_problems
from lhtrain.conf.rules.tracking import logger_problems
from lhtrain.conf.rules.values import value_problems
from lhtrain.conf.schema import Config

RULES = (
    *(value_problems, option_problems, count_problems, optim_problems, run_problems, model_problems),
    *(stage_problems, compute_problems, all_data_problems, logger_problems, cluster_problems),
    *(eval_problems, pattern_problems, profile_problems, stage_data_problems),
)


def validate(config: Config, n_ranks: int | None = None) -> list[Problem]:
    """Return every broken rule; [] means that `config` can run. n_ranks: the number of ranks, if known."""
    problems = [problem for rule in RULES for problem in rule(config)]
    problems += [*parallel_problems(config, n_ranks), *batch_problems(config, n_ranks)]
    return [*problems, *step_problems(config, n_ranks)]
