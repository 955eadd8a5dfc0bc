"""Bytes on each link, compared with numbers counted by hand."""

import pytest

from lhtrain.compute.fill import compose_config
from lhtrain.compute.links import Group, Links, Transfer, traffic
from lhtrain.compute.memory import parameters
from lhtrain.stage import stages_of

LINKS = Links(nvlink=100.0, network=10.0, node=8)
BASE = ["model=lighthouse_530m", "model.dense_layers=[]", "lighthouse.budget=2048", "stage=two_stage"]


def moved(*settings, ranks, stage="recovery"):
    config = compose_config([*BASE, "run.grad_accum=1", "compute.recompute=none", *settings], ranks)
    return traffic(config, stages_of(config)[stage], ranks, LINKS)


def weights():
    return parameters(compose_config(BASE).model)


def test_a_gather_inside_a_machine_brings_what_the_others_have():
    found = Group(8, 1, LINKS).gather(800)
    assert (found.nvlink, found.network) == (700, 0)
    assert found.seconds == pytest.approx(7, rel=0.01)


def test_a_gather_over_machines_divides_what_a_machine_receives_over_its_adapters():
    found = Group(16, 1, LINKS).gather(1600)
    assert found.network == 1600 / 2 / 8
    assert found.nvlink + found.network == 1600 * 15 / 16
    assert found.seconds == pytest.approx(max(1400 / 100, 100 / 10), rel=0.01)


def test_replicas_of_a_machine_each_meet_over_the_network():
    group = Group(4, 8, LINKS)  # one rank of each of four machines
    assert (group.here, group.machines) == (1, 4)
    found = group.reduce(400)
    assert (found.nvlink, found.network) == (0, 600)


def test_an_exchange_goes_to_ranks_of_the_own_machine_and_of_others():
    found = Group(16, 1, LINKS).exchange(160)
    assert (found.nvlink, found.network) == (70, 80)


def test_one_gpu_receives_nothing():
    assert moved(ranks=1).total == Transfer()


def test_fsdp_gathers_bfloat16_twice_and_reduces_float32_once():
    inner, embeddings = weights()
    found = moved("parallel.dp_shard=8", ranks=8)
    assert found.forward.nvlink == pytest.approx(2 * inner * 7 / 8)
    assert found.backward.nvlink == pytest.approx((2 + 4) * inner * 7 / 8)
    assert found.ends.nvlink == pytest.approx((2 + 4) * embeddings * 7 / 8)
    assert found.total.network == 0


def test_several_micro_batches_gather_often_and_reduce_once():
    inner, _ = weights()
    batch = ["parallel.dp_shard=8", "run.batch_tokens=3145728", "run.grad_accum=4"]
    once = moved(*batch, ranks=8)
    assert once.backward.nvlink == pytest.approx((4 * 2 + 4) * inner * 7 / 8)
    each = moved(*batch, "parallel.reduce_always=true", ranks=8)
    assert each.backward.nvlink == pytest.approx(4 * (2 + 4) * inner * 7 / 8)


def test_replicas_send_their_gradients_alone_over_the_network():
    inner, embeddings = weights()
    batch = ["run.batch_tokens=12582912", "run.grad_accum=2"]
    sharded = moved(*batch, ranks=64)
    replicas = moved(*batch, "parallel.dp_replicate=8", ranks=64)
    assert replicas.total.network == pytest.approx(2 * 4 * (inner + embeddings) / 8 * 7 / 8)
    of_gathers = (2 * 2 * 2 + 4) * inner + (2 * 2 + 4) * embeddings
    assert sharded.total.network == pytest.approx(of_gathers / 8 * 7 / 8)
    assert replicas.total.network < sharded.total.network


def test_ulysses_exchanges_queries_keys_values_and_outputs_in_each_pass():
    tensors = 30 * 4 * 2 * 1024 * 98_304 / 2  # of 30 layers; a rank of two has half of the tokens
    found = moved("parallel.cp=2", ranks=2)
    assert found.between.nvlink == pytest.approx(2 * tensors / 2)  # both passes; half stays
    again = moved("parallel.cp=2", "compute.recompute=full", ranks=2)
    assert again.between.nvlink == pytest.approx(3 * tensors / 2)
    assert moved("parallel.cp=2", ranks=2, stage="lighthouse").between.nvlink < found.between.nvlink


def test_the_ring_passes_keys_and_values_and_returns_their_gradients_in_float32():
    found = moved("parallel.cp=4", "parallel.cp_attention=ring", ranks=4)
    kv = 30 * 2 * 1024 * 98_304 / 4
    assert found.between == Transfer()
    assert found.ring.nvlink == pytest.approx(2 * 3 * 2 * kv + 4 * 4 * kv)


def test_a_window_needs_the_tokens_before_each_chunk():
    plain, window = (
        moved("parallel.cp=2", *more, ranks=2, stage="lighthouse") for more in ([], ["lighthouse.window=512"])
    )
    assert window.between.nvlink > plain.between.nvlink


def test_only_what_is_longer_than_the_computation_beside_it_adds_to_a_step():
    found = moved("parallel.dp_shard=8", ranks=8)
    ends = found.ends.seconds
    assert found.exposed(1e12, 1e12, 1e12) == (ends, "NVLink")
    seconds, link = found.exposed(0, 0, 0)
    assert seconds == pytest.approx(found.forward.seconds + found.backward.seconds + ends)
    assert link == "NVLink"


def test_the_link_is_that_of_the_transfers_that_add_most():
    sharded = moved(ranks=64)
    assert sharded.exposed(0, 0, 0)[1] == "network"
    both = moved("parallel.cp=4", "parallel.dp_replicate=2", ranks=64)  # exchanges inside a machine
    assert both.exposed(1e12, 1e12, 1e12)[1] == "NVLink"


def test_gradients_of_frozen_parameters_are_not_reduced():
    inner, embeddings = weights()
    found = moved("parallel.dp_shard=8", "stages.recovery.frozen=[embedding,head]", ranks=8)
    assert found.backward.nvlink == pytest.approx((2 + 4) * inner * 7 / 8)
    assert found.ends.nvlink == pytest.approx(2 * embeddings * 7 / 8)


def test_sliding_layers_of_a_ring_send_the_tokens_before_each_chunk_alone():
    ring = ["parallel.cp=4", "parallel.cp_attention=ring"]
    sliding = ["model.sliding_window=1025", "model.sliding_window_pattern=3"]  # 20 of 30 layers
    whole, parts = moved(*ring, ranks=4), moved(*ring, *sliding, ranks=4)
    assert parts.ring.nvlink == pytest.approx(whole.ring.nvlink / 3)
    values = 2 * 1024 * 2 * 1024 * 4  # keys and values of 1,024 tokens before two chunks of each of 4 ranks
    assert parts.between.nvlink - whole.between.nvlink == pytest.approx(20 * values * (2 + 2 * 4) * 3 / 4)


def test_muon_exchanges_rows_for_whole_matrices_and_back():
    inner, _ = weights()
    adamw, muon = (
        moved("parallel.dp_shard=8", f"optim={kind}", ranks=8, stage="recovery") for kind in ("adamw", "muon")
    )
    assert muon.ends.nvlink - adamw.ends.nvlink == pytest.approx(2 * 2 * inner / 8 * 7 / 8)


def test_with_own_queries_ranks_exchange_heads_of_whole_sequences():
    """As full attention does: the recovery moves the same bytes."""
    own = ["parallel.cp=4", "lighthouse.queries=own", "lighthouse.window=16384"]
    lighthouse, recovery = (moved(*own, ranks=4, stage=stage) for stage in ("lighthouse", "recovery"))
    assert lighthouse.between == recovery.between != Transfer()
