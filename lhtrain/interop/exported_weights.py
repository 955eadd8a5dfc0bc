"""The weights of a checkpoint as files of transformers, read from it one file at a time."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lhtrain import checkpoint
from lhtrain.conf.schema import ModelConfig
from lhtrain.errors import RunError
from lhtrain.interop.families import published_name
from lhtrain.model.decoder import GPT, OWN_SCORER
from lhtrain.weights import AVERAGE, check_average, prefix_of


class ExportedWeights:
    """The parameters of the checkpoint `path`, rounded to `dtype`, by their names in transformers.

    A tied head and the parameters of scorers, which full attention does not use, are left out. Only the
    tensors of one file are in memory at once, so that a model may be larger than the memory.

    kind: "last", or "average": the moving average of the weights.

    Raises RunError: it has no average, or does not have the weights of a model of shape `config`.
    """

    def __init__(self, path: Path, config: ModelConfig, dtype: torch.dtype, kind: str = "last") -> None:
        prefix = prefix_of(kind)
        self.is_average = prefix == AVERAGE
        if self.is_average:
            check_average(path, checkpoint.opened(path).tensors, f"weights={kind}")
        self.path, self.dtype = path, dtype
        with torch.device("meta"):
            shapes = {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
            tensors = {f"{prefix}{name}": torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        checkpoint.check(path, tensors, optional=[OWN_SCORER], partial=self.is_average)
        self._own_names = {published_name(name): f"{prefix}{name}" for name in shapes}
        self._empty = {published_name(name.removeprefix(prefix)): one for name, one in tensors.items()}
        self.n_parameters = sum(tensor.numel() for tensor in tensors.values())
        self.nbytes = self.n_parameters * dtype.itemsize

    def files(self, size: str | int) -> Iterator[tuple[str, list[str]]]:
        """Yield the name of each file, of at most `size`, and the names of its weights."""
        from huggingface_hub import split_torch_state_dict_into_shards

        yield from split_torch_state_dict_into_shards(
            self._empty, max_shard_size=size
        ).filename_to_tensors.items()

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Return some weights. Raises RunError: the checkpoint is damaged or cannot be read."""
        found = {name: torch.empty_like(self._empty[name], device="cpu") for name in names}
        try:
            tensors = {self._own_names[name]: tensor for name, tensor in found.items()}
            checkpoint.load(self.path, tensors, partial=True)
        except OSError as error:
            raise RunError(f"checkpoint {self.path}: cannot be read ({error})") from error
        return found
