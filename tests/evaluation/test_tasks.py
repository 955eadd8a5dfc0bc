"""Each task on models whose right measurement is known."""

import math
from dataclasses import replace

import pytest
from rich.console import Console

from lhtrain.evaluation import copying, gain_of_context, long_ppl, loss_by_position, passkey, recall
from lhtrain.evaluation.plan import LONG, PAIRS
from lhtrain.evaluation.tasks import FULL, OWN, measure
from lhtrain.report.evaluation import tables
from tests.evaluation.planted import DEPTHS, LOG_V, Planted, by_position, copier, texts_of, trial_of, uniform


@pytest.fixture
def texts(tmp_path):
    return texts_of(tmp_path / "text")


def test_a_copier_recalls_every_value_and_knows_none_without_its_pair(texts):
    result = recall.run(trial_of(texts))
    assert result["exact"] == 1 and result["loss"] == 0
    assert len(result["cells"]) == len(PAIRS) * len(DEPTHS) and len(result["control"]) == len(PAIRS)
    assert result["control_loss"] > 0.5 * LOG_V
    assert all(row["exact"] == 0 for row in result["control"])


def test_a_guesser_recalls_nothing(texts):
    result = recall.run(trial_of(texts, uniform))
    assert result["exact"] == 0
    assert result["loss"] == pytest.approx(LOG_V) and result["control_loss"] == pytest.approx(LOG_V)


def test_pairs_are_in_the_text_at_their_depths_and_absent_in_the_control(texts):
    trial = trial_of(texts, uniform, samples=1)
    recall.run(trial)
    *shown, control = (bytes(one.astype("u1")).decode() for one in trial.score.seen[: len(DEPTHS) + 1])
    _, question = control.rsplit("The number of the ", 1)
    key, value = question.split(" is ")
    assert len(value) == 5 and value.isdecimal()
    assert value not in control[:-6] and key not in control[: -len(question)]
    for depth, text in zip(DEPTHS, shown, strict=True):
        sentence = f" The number of the {key} is {value}. "
        assert text.endswith(f" The number of the {key} is {value}")
        room = len(text) - len(sentence) - len(f" The number of the {key} is {value}")
        assert text.index(sentence) == round(depth * room)
        assert text.replace(sentence, "") == control[:room] + text[-(len(question) + 19) :]


def test_a_text_that_is_too_short_for_the_sentences_is_left_out(texts):
    result = recall.run(trial_of(texts, uniform, context=256, lengths=(256,)))
    assert {row["pairs"] for row in result["cells"]} == {1, 4}  # 16 sentences are longer


def test_a_copier_finds_every_pass_key(texts):
    result = passkey.run(trial_of(texts, samples=3))
    assert result["accuracy"] == 1 and {row["n"] for row in result["cells"]} == {3}


def test_a_model_that_always_says_0_finds_the_pass_keys_that_are_0(texts):
    trial = trial_of(texts, uniform, samples=10)
    assert passkey.run(trial)["accuracy"] == pytest.approx(0.1)  # each digit once at each depth
    text = bytes(trial.score.seen[0].astype("u1")).decode()
    assert "The grass is green." in text and text[:-1].endswith("What is the pass key? The pass key is ")
    assert f"The pass key is {text[-1]}. Remember it." in text


def test_a_copier_copies_at_every_distance(texts):
    result = copying.run(trial_of(texts))
    assert [(row["length"], row["distance"]) for row in result["cells"]] == [(1024, 512), (1024, 921)]
    assert all(row["loss"] == 0 and row["exact"] == 1 for row in result["cells"])
    assert result["first_loss"] > 0.8 * LOG_V
    guessed = copying.run(trial_of(texts, uniform))
    assert guessed["loss"] == pytest.approx(LOG_V) == guessed["first_loss"]


def test_the_loss_by_position_is_the_model_s(texts):
    result = loss_by_position.run(trial_of(texts, by_position(lambda t: t)))
    begins = [0, 64, 128, 256, 512]
    assert [bucket["begin"] for bucket in result["buckets"]] == begins
    for bucket in result["buckets"]:
        assert bucket["loss"] == pytest.approx((bucket["begin"] + bucket["end"] - 1) / 2)
        assert bucket["stderr"] == pytest.approx(0)
    assert result["last"]["tokens"] == 256
    assert result["last"]["loss"] == pytest.approx((768 + 1023) / 2)
    assert result["documents"] == 3 and not result["joined"]


def test_only_documents_as_long_as_the_context_count(texts, tmp_path):
    result = loss_by_position.run(trial_of(texts, uniform, context=4096))
    assert result["documents"] == 1 and result["loss"] == pytest.approx(LOG_V)
    joined = loss_by_position.run(trial_of(texts, uniform, context=8192))
    assert joined["documents"] == 1 and joined["joined"]
    assert loss_by_position.run(trial_of(texts, uniform, context=16384)) is None


def test_lengths_beyond_the_context_are_measured_too(texts):
    """The numbers at the context stay as they are, so that models with other eval.lengths are comparable."""
    tasks = {"tasks": LONG, "context": 1024, "samples": 1}
    plain = trial_of(texts, by_position(lambda t: t), **tasks, lengths=(512, 1024))
    longer = trial_of(texts, by_position(lambda t: t), **tasks, lengths=(512, 2048))
    longer.plan = replace(longer.plan, longest=2048)
    found, without = (measure({FULL: one.score}, texts, one.plan)[FULL] for one in (longer, plain))
    beyond = {task: found[task].pop("beyond") for task in LONG}
    assert found == without and [one["length"] for one in beyond.values()] == [2048] * 3
    assert beyond["loss_by_position"]["buckets"][-1]["begin"] == 1024
    assert beyond["loss_by_position"]["last"]["loss"] == pytest.approx((1536 + 2047) / 2)
    assert beyond["gain_of_context"]["short"] == 1024
    assert {length for length, _ in longer.plan.passes()} == {512, 1024, 2048}


def test_the_table_shows_losses_beyond_the_context_and_counts_one_document(texts):
    one = {"tasks": ("loss_by_position",), "context": 4096, "samples": 1, "lengths": (4096,)}
    plan = replace(trial_of(texts, uniform, **one).plan, longest=8192)
    results = measure({FULL: Planted(uniform)}, texts, plan)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(tables(results))
    assert "mean of 1 document\n" in shown.get() and "8,192 tokens, beyond the context" in shown.get()
    assert "mean of 1 joined document: none is long enough" in shown.get()


def test_the_gain_of_context_is_what_the_context_is_worth(texts):
    known = trial_of(texts, by_position(lambda t: 3.0 if t < 600 else 1.0))
    result = gain_of_context.run(known)
    assert (result["short"], result["tail"]) == (512, 128)
    assert result["gain"] == pytest.approx(2.0) and result["loss_long"] == pytest.approx(1.0)
    assert gain_of_context.run(trial_of(texts, uniform))["gain"] == 0


def test_key_tokens_are_those_that_the_long_context_makes_likely(texts):
    def model(tokens, t):
        needs_context = len(tokens) > 1000 and t % 10 == 0
        return -1, 0.0, 0.5 if needs_context else 4.0

    result = long_ppl.run(trial_of(texts, model))
    chosen = len([t for t in range(512, 1024) if t % 10 == 0])
    assert result["tokens"] == 3 * chosen and result["ppl"] == pytest.approx(math.exp(0.5))
    assert long_ppl.run(trial_of(texts, uniform))["ppl"] is None


def test_both_attentions_have_the_same_key_tokens(texts):
    def full(tokens, t):
        return -1, 0.0, 0.5 if len(tokens) > 1000 and t % 10 == 0 else 4.0

    plan = trial_of(texts, tasks=("long_ppl", "copy")).plan
    scores = {FULL: Planted(full), OWN: Planted(by_position(lambda t: 1.0))}
    result = measure(scores, texts, plan)
    assert result[OWN]["long_ppl"]["tokens"] == result[FULL]["long_ppl"]["tokens"] > 0
    assert result[OWN]["long_ppl"]["ppl"] == pytest.approx(math.e)
    assert "full" in result[OWN]["long_ppl"]["chosen_by"]
    assert list(result[FULL]) == ["long_ppl", "copy"]
    assert measure({FULL: Planted(uniform)}, texts, plan)[OWN] is None


def test_a_seed_repeats_every_number(tmp_path):
    tasks = ("loss_by_position", "recall", "passkey", "copy")

    def run(seed):
        texts = texts_of(tmp_path / "text", seed=seed)
        plan = trial_of(texts, samples=1, seed=seed, depths=(0.5,), tasks=tasks).plan
        score = Planted(copier)
        return measure({FULL: score}, texts, plan), [tokens.tolist() for tokens in score.seen]

    assert run(1) == run(1)
    assert run(1)[1] != run(2)[1]
