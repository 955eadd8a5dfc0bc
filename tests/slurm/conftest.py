import pytest

from tests.integration.command import TINY, Lhtrain
from tests.slurm.cluster import ROOT, STEPS, Cluster, reason_to_skip, slurm


@pytest.fixture(scope="session")
def local_slurm():
    """Skip the tests if the local cluster is not running."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    yield
    slurm("scancel", "--me")
    slurm("scontrol", "update", "NodeName=node0,node1", "State=RESUME", check=False)


@pytest.fixture(scope="session")
def lhtrain(tmp_path_factory):
    return Lhtrain(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="session")
def trainer(local_slurm, lhtrain):
    """Jobs of the real trainer, on the same data as the runs of the fixture `lhtrain`."""
    settings = ["stages.lighthouse.fraction=0.5", "cluster.setup=['export OMP_NUM_THREADS=1']"]
    return Cluster(lhtrain.folder, *lhtrain.data, *TINY, *settings)


@pytest.fixture(scope="session")
def undisturbed(local_slurm, lhtrain):
    """The run that others are compared with. It is not a job."""
    return lhtrain("undisturbed", STEPS)


@pytest.fixture(scope="session")
def stand_in(local_slurm, lhtrain):
    """Jobs of stand_in.py, which behaves as `behaviour` names."""

    def cluster(behaviour: str, *settings: str) -> Cluster:
        setup = f"cluster.setup=['export STAND_IN={behaviour} PYTHONPATH={ROOT} OMP_NUM_THREADS=1']"
        return Cluster(lhtrain.folder, setup, "cluster.module=tests.slurm.stand_in", *settings)

    return cluster
