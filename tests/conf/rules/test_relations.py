"""The rules between keys that `lhtrain help` shows are those that a configuration is checked with."""

import pytest

from lhtrain.conf.compose import check_overrides
from lhtrain.conf.keys import all_keys
from lhtrain.conf.problems import ConfigError
from lhtrain.conf.rules.relations import RELATIONS, relations_of


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.rule)
def test_settings_that_break_a_rule_are_a_problem_of_its_keys(relation):
    with pytest.raises(ConfigError) as error:
        check_overrides(list(relation.broken_by), n_ranks=relation.ranks)
    found = [problem.key for problem in error.value.problems]
    # "parallel.dp_replicate * dp_shard * cp" and optim.options.a are about the keys that they begin with
    names = (found[0], found[0].split(" ")[0], found[0].rpartition(".")[0])
    assert any(relation.concerns(name) for name in names), found


def test_rules_are_about_keys_that_exist():
    assert {key for relation in RELATIONS for key in relation.keys} <= {*all_keys()}


def test_a_stage_has_the_rules_of_all_stages():
    assert relations_of("stages.mine.budget") == relations_of("stages.NAME.budget") != []
