"""What a run prints before its first step."""

from lhtrain import greeting
from lhtrain.conf.compose import compose_config
from lhtrain.conf.fill import filled


def stages(*overrides):
    return greeting.about_stages(filled(compose_config(["data=text", "data.path=.", *overrides])))


def test_a_lighthouse_stage_says_in_how_many_layers():
    """Of dense_layers, which may name a layer twice."""
    some = "model.dense_layers=[0,-1,3]", "model.n_layers=4"
    assert "(budget k = 128) in 2 of 4 layers" in stages(*some)[0]
    assert stages()[0].endswith("(budget k = 128)") and "layers" not in stages(*some)[1]
