"""What the program says when a run ends badly."""

import torch
from omegaconf import OmegaConf

from lhtrain.cli import out_of_memory
from lhtrain.conf.compose import compose_config


def test_out_of_memory_says_what_helps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 80 * 10**9))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has …")
    composed = OmegaConf.structured(compose_config(["model=lighthouse_530m", "run.dir=d", "run.name=n"]))
    said = out_of_memory(error, composed).splitlines()
    assert said[0] == "CUDA out of memory." and "the GPU has 80 GB" in said[1]
    assert any("compute.recompute=full " in line and line.endswith("fits") for line in said)
