"""Meshes that a configuration allows, and the choice among them."""

from lhtrain.compute.meshes import Hardware, best, meshes
from lhtrain.compute.prediction import predict
from lhtrain.compute.rates import H100
from lhtrain.conf.compose import check_overrides
from lhtrain.stage import stages_of

GPUS_OF_80 = Hardware(H100, 80 * 10**9)


def found(n_ranks, *settings):
    return meshes(check_overrides(["model=llama3_8b", *settings]), n_ranks, GPUS_OF_80)


def test_one_gpu_has_one_mesh():
    (one,) = found(1)
    assert one.mesh() == "1 GPU" and not one.fits


def test_meshes_of_a_machine_and_of_several():
    assert [one.mesh() for one in found(4)] == ["dp_shard=4", "dp_shard=2 cp=2"]
    of_two = [one.mesh() for one in found(16)]
    assert "dp_shard=16" in of_two and "dp_replicate=2 dp_shard=8" in of_two
    assert all(one.n_ranks == 16 for one in found(16))


def test_a_batch_that_cannot_be_shared_leaves_meshes_out():
    names = [one.mesh() for one in found(4, "run.batch_tokens=65536")]
    assert names == ["dp_shard=2 cp=2"]
    assert found(8, "run.batch_tokens=32768") == []
    assert best([]) is None


def test_the_best_mesh_fits_and_is_the_fastest_for_its_tokens():
    every = found(8)
    chosen = best(every)
    assert chosen.fits
    per_token = [one.seconds / one.tokens for one in every if one.fits]
    assert chosen.seconds / chosen.tokens == min(per_token)
    small = meshes(check_overrides(["model=llama3_8b"]), 8, Hardware(H100, 10**9))
    assert not best(small).fits and best(small).peak == min(one.peak for one in small)


def test_a_slow_network_limits_sharding_over_machines():
    slow = Hardware(H100, 80 * 10**9, network=1e9)
    every = meshes(check_overrides(["model=llama3_8b"]), 64, slow)
    sharded = next(one for one in every if one.mesh() == "dp_shard=64")
    assert {stage.limit() for stage in sharded.stages.values()} == {"network"}
    fast = next(one for one in found(64) if one.mesh() == "dp_shard=64")
    assert sharded.seconds > fast.seconds


def test_the_network_counts_only_between_machines():
    (one,) = (one for one in found(8) if one.mesh() == "dp_shard=8")
    for name, stage in stages_of(one.config).items():
        slow = predict(one.config, stage, H100, 8, network=1.0)
        assert slow.seconds == one.stages[name].seconds
        assert predict(one.config, stage, H100, 8, network=1.0, node=4).limit() == "network"
