"""Runs the forward and backward pass of a micro-batch as a CUDA graph (compute.cuda_graph).

A small micro-batch has kernels that run for less time than the host needs to start them, so the GPU waits.
A graph is recorded once and contains all kernels of the two passes; the host then starts it with one call.
The kernels are the same, so two runs with and without graphs differ as little as two runs without.

A graph reads and writes fixed memory. Before each replay the micro-batch is copied into the tensors with
which the graph was recorded. For each form of micro-batches there are two graphs: one writes the gradients,
for the first micro-batch of a step, and one adds to them, for the others.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lhtrain.attention.documents import Documents
from lhtrain.compute.captured import MOST_TOKENS, most_tokens
from lhtrain.conf.schema import ComputeConfig
from lhtrain.model.decoder import GPT

LEAST_FREE = 0.05  # of the GPU's memory after recording; a graph keeps the memory of its activations

Mark = Callable[[str], AbstractContextManager[Any]]  # marks a part of a step in a trace


class Inputs(NamedTuple):
    """A micro-batch as `GPT.loss` takes it."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    documents: Documents | None

    def tensors(self) -> list[Tensor]:
        """Return all tensors that are not None."""
        found = [self.tokens, self.targets, self.positions, *(self.documents or ())]
        return [tensor for tensor in found if tensor is not None]

    def form(self) -> tuple:
        """Return what must be equal for two micro-batches to use the same graph."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors())
        return shapes, self.positions is None, self.documents is None

    def copied(self) -> "Inputs":
        """Return a copy in memory of its own."""
        documents = None if self.documents is None else Documents(*(x.clone() for x in self.documents))
        positions = None if self.positions is None else self.positions.clone()
        return Inputs(self.tokens.clone(), self.targets.clone(), positions, documents)


class Passes(Protocol):
    """Computes a micro-batch and adds its gradients to those of the parameters."""

    def __call__(
        self, model: GPT, inputs: Inputs, weight: float, z_loss: float, mark: Mark = nullcontext
    ) -> Tensor:
        """Return `weight` times the loss, a float32 scalar. A later call may overwrite it."""


def plain_passes(
    model: GPT, inputs: Inputs, weight: float | Tensor, z_loss: float, mark: Mark = nullcontext
) -> Tensor:
    """The passes without a graph. weight: also a float32 scalar on the device, with the same result."""
    tokens, targets, positions, documents = inputs
    with mark("forward"):
        loss = model.loss(tokens, targets, positions, z_loss=z_loss, documents=documents)
    loss = loss * weight
    with mark("backward"):
        loss.backward()
    return loss.detach()


class Recorder(Protocol):
    """Records work of the device. A test has one for the CPU."""

    def rehearse(self, run: Callable[[], Tensor]) -> None:
        """Do the work without recording it, as often as it takes to compile and to allocate.

        Raises RuntimeError: the host waits for the device, so that the work cannot be recorded.
        """

    def record(self, run: Callable[[], Tensor], before: Any) -> tuple[Any, Tensor]:
        """Record the work without doing it; return an object with `replay`, and the result of `run`.

        before: an earlier recording, which shares its memory with this one; None: there is none.

        Raises RuntimeError: the work cannot be recorded, or there is too little memory.
        """

    def forget(self) -> None:
        """Give back the memory of recordings that nothing refers to any more."""


class CudaRecorder:
    """Records CUDA graphs on a stream of its own."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def rehearse(self, run: Callable[[], Tensor]) -> None:
        with self._on_stream():
            run()  # compiles, and allocates workspaces outside the graph's memory
            with _no_waiting():
                run()

    def record(self, run: Callable[[], Tensor], before: Any) -> tuple[Any, Tensor]:
        graph, found = torch.cuda.CUDAGraph(), []
        pool = None if before is None else before.pool()
        # thread_local, because the thread of the loader allocates pinned memory at the same time
        recording = torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local")
        with self._on_stream(), recording:
            found.append(run())
        free, total = torch.cuda.mem_get_info()
        if free < LEAST_FREE * total:
            raise RuntimeError(f"only {free / 1e9:.1f} GB of GPU memory would be left")
        return graph, found[0]

    def forget(self) -> None:
        torch.cuda.empty_cache()

    @contextmanager
    def _on_stream(self):  # type: ignore[no-untyped-def]
        """Run on the stream; afterwards, also after an error, the previous stream is current."""
        outside = torch.cuda.current_stream()
        self.stream.wait_stream(outside)
        torch.cuda.set_stream(self.stream)
        try:
            yield
        finally:
            torch.cuda.set_stream(outside)
            outside.wait_stream(self.stream)


@contextmanager
def _no_waiting():  # type: ignore[no-untyped-def]
    """Raise RuntimeError if the host waits for the device: a recording that fails is harder to end."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls this mode a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


@dataclass
class Recorded:
    """One graph with the tensors that it reads and writes.

    kept: what else the graph reads, which must not be freed. gradients: of each parameter; None if the
    passes compute none.
    """

    graph: Any
    inputs: Inputs
    weight: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
    kept: Any

    def replay(self, inputs: Inputs, weight: float, parameters: list[nn.Parameter]) -> Tensor:
        """Run the graph on `inputs`; return the weighted loss. Sets the gradients of `parameters`."""
        for mine, given in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
            mine.copy_(given, non_blocking=True)
        self.weight.fill_(weight)
        self.graph.replay()
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.loss


class GraphedPasses:
    """Passes that run as graphs, or as `plain_passes` if that is not possible; `say` then gets the reason.

    model: the model of all calls, whose parameters stay where they are. most_tokens: larger micro-batches run
    without a graph.
    """

    def __init__(self, model: GPT, recorder: Recorder, most_tokens: float = MOST_TOKENS):
        self.recorder, self.most_tokens = recorder, most_tokens
        self.parameters = list(model.parameters())
        self.say: Callable[[str], None] = print
        self.stage = ""
        self.failed = False  # in the current stage
        self._graphs: dict[tuple, Recorded] = {}

    def enter(self, stage: str) -> None:
        """Prepare for the passes of a stage. Another stage has other kernels, so graphs are freed."""
        if stage != self.stage:
            self.stage, self.failed = stage, False
            self.forget()

    def forget(self) -> None:
        """Free all graphs."""
        if self._graphs:
            self._graphs.clear()
            self.recorder.forget()

    def __call__(
        self, model: GPT, inputs: Inputs, weight: float, z_loss: float, mark: Mark = nullcontext
    ) -> Tensor:
        graph = None
        if not self.failed and inputs.tokens.numel() <= self.most_tokens:
            graph = self._graph(model, inputs, z_loss)
        if graph is None:
            return plain_passes(model, inputs, weight, z_loss, mark)
        with mark("graph"):
            return graph.replay(inputs, weight, self.parameters)

    def _graph(self, model: GPT, inputs: Inputs, z_loss: float) -> Recorded | None:
        """Return the graph for these inputs, recorded now if there is none; None if that is not possible."""
        form = inputs.form(), z_loss
        adds = any(parameter.grad is not None for parameter in self.parameters)
        first = self._graphs.get((form, False))
        if adds and (first is None or not self._hold(first.gradients)):
            return None  # the gradients to which it should add are not those of a graph
        if (form, adds) not in self._graphs:
            try:
                self._graphs[form, adds] = self._record(model, inputs, z_loss, first if adds else None)
            except RuntimeError as error:
                self._fail(str(error).strip().splitlines()[0], first if adds else None)
                return None
        return self._graphs[form, adds]

    def _record(self, model: GPT, inputs: Inputs, z_loss: float, first: Recorded | None) -> Recorded:
        mine = inputs.copied()
        weight = torch.ones((), device=inputs.tokens.device)

        def run() -> Tensor:
            return plain_passes(model, mine, weight, z_loss)

        if first is None:

            def rehearsed() -> Tensor:
                loss = run()
                self._put([None] * len(self.parameters))
                return loss

            self.recorder.rehearse(rehearsed)
        graph, loss = self.recorder.record(run, None if first is None else first.graph)
        gradients = [parameter.grad for parameter in self.parameters]
        return Recorded(graph, mine, weight, loss, gradients, kept=model.rope)

    def _fail(self, why: str, first: Recorded | None) -> None:
        self.failed = True
        self._put([None] * len(self.parameters) if first is None else first.gradients)
        self.forget()
        self.say(f"graph     no CUDA graph in this stage, steps may be slower: {why}; compute.cuda_graph=off")

    def _hold(self, gradients: list[Tensor | None]) -> bool:
        pairs = zip(self.parameters, gradients, strict=True)
        return all(parameter.grad is gradient for parameter, gradient in pairs)

    def _put(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient


def graphs_for(
    model: GPT, compute: ComputeConfig, n_ranks: int, device: torch.device
) -> GraphedPasses | None:
    """Return the graphed passes of a configuration; None: it uses `plain_passes`."""
    most = most_tokens(compute, n_ranks, device.type == "cuda")
    return GraphedPasses(model, CudaRecorder(), most) if most else None
