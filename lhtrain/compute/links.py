"""What the GPUs of a run send to each other in a step: bytes on each link, and the time that they take.

FSDP gathers the weights of a block before its forward and again before its backward pass, and reduces its
gradients in float32; replicas then sum their shares of the gradients. Both run while other blocks compute,
so only what exceeds the computation adds to a step, and the parts at its two ends. The exchanges of context
parallelism (two for each attention with Ulysses) happen between the computations, and each adds its time;
the ring sends while it attends.

Collectives over ranks of several machines are NCCL's rings with one network adapter for each GPU: what a
machine receives is divided over its adapters, and every ring passes all ranks. Measured only inside a
machine (scripts/bench/results/multi_gpu.csv); the network's rate is an assumption.
"""

from dataclasses import dataclass, fields

from lhtrain.compute.memory import element, parameters
from lhtrain.compute.rates import NETWORK_HOP, NVLINK_HOP
from lhtrain.compute.trained import Trained
from lhtrain.conf.rules.parallel import mesh_sizes, pick_method
from lhtrain.conf.schema import Config, ModelConfig, Recompute
from lhtrain.conf.sliding import sliding_layers
from lhtrain.stage import Stage


@dataclass(frozen=True)
class Links:
    """Bytes/s that a GPU receives: over NVLink inside its machine, over the network; GPUs of a machine."""

    nvlink: float
    network: float
    node: int = 8


@dataclass(frozen=True)
class Transfer:
    """Bytes that a GPU receives over each link, and seconds; far: those of transfers between machines."""

    nvlink: float = 0.0
    network: float = 0.0
    seconds: float = 0.0
    far: float = 0.0

    def __add__(self, other: "Transfer") -> "Transfer":
        sums = (getattr(self, key.name) + getattr(other, key.name) for key in fields(self))
        return Transfer(*sums)

    def __mul__(self, count: float) -> "Transfer":
        return Transfer(*(getattr(self, key.name) * count for key in fields(self)))


NOTHING = Transfer()


@dataclass(frozen=True)
class Group:
    """Ranks of a collective: `size` ranks, every `stride`-th of the run."""

    size: int
    stride: int
    links: Links

    @property
    def here(self) -> int:
        """Ranks of the group in one machine."""
        return max(min(self.size, self.links.node // self.stride), 1)

    @property
    def machines(self) -> int:
        return -(-self.size // self.here)

    def gather(self, whole: float) -> Transfer:
        """An all-gather whose result has `whole` bytes, or a reduce-scatter of as many."""
        if self.size == 1:
            return NOTHING
        network = whole * (self.machines - 1) / self.machines / self.here
        hops = (self.size - self.machines) * NVLINK_HOP + (self.machines - 1) * NETWORK_HOP
        return self._transfer(whole * (self.size - 1) / self.size - network, network, hops)

    def reduce(self, each: float) -> Transfer:
        """An all-reduce of `each` bytes of every rank: a reduce-scatter and an all-gather."""
        return self.gather(each) * 2

    def exchange(self, each: float) -> Transfer:
        """An all-to-all of `each` bytes of every rank."""
        if self.size == 1:
            return NOTHING
        share = each / self.size
        hop = NETWORK_HOP if self.machines > 1 else NVLINK_HOP
        return self._transfer(share * (self.here - 1), share * (self.size - self.here), hop)

    def pass_on(self, each: float) -> Transfer:
        """Every rank sends `each` bytes to the next; the slowest link between two decides the time."""
        if self.size == 1:
            return NOTHING
        crossing = self.machines > 1
        network = each / self.here if crossing else 0.0  # of one in `here` ranks, so on average
        rate, hop = (self.links.network, NETWORK_HOP) if crossing else (self.links.nvlink, NVLINK_HOP)
        seconds = each / rate + hop
        return Transfer(each - network, network, seconds, seconds if crossing else 0.0)

    def _transfer(self, nvlink: float, network: float, hops: float) -> Transfer:
        seconds = max(nvlink / self.links.nvlink, network / self.links.network) + hops
        return Transfer(nvlink, network, seconds, seconds if self.machines > 1 else 0.0)


@dataclass(frozen=True)
class Traffic:
    """The transfers of a step on one GPU.

    forward, backward: of FSDP and replicas, beside the passes. ends: of FSDP, before the first block and
    after the last, and of Muon. between: of context parallelism, between computations. ring: beside
    attention.
    """

    forward: Transfer
    backward: Transfer
    ends: Transfer
    between: Transfer
    ring: Transfer

    @property
    def total(self) -> Transfer:
        return self.forward + self.backward + self.ends + self.between + self.ring

    def exposed(self, forward: float, backward: float, attention: float) -> tuple[float, str]:
        """Return the seconds that the transfers add to a step, given those of its computation, and the link.

        The link, NVLink or network, is that of the transfers that add most.
        """
        beside = ((self.forward, forward), (self.backward, backward), (self.ring, attention))
        late = [(max(transfer.seconds - seconds, 0.0), transfer) for transfer, seconds in beside]
        late += [(transfer.seconds, transfer) for transfer in (self.ends, self.between)]
        _, most = max(late, key=lambda one: one[0])
        return sum(seconds for seconds, _ in late), "network" if most.far > most.seconds / 2 else "NVLink"


def traffic(config: Config, stage: Stage, n_ranks: int, links: Links) -> Traffic:
    """Return what a GPU receives in a step of `stage`, of a filled configuration on `n_ranks` GPUs."""
    replicate, shard, cp = mesh_sizes(config.parallel, n_ranks)
    shards = Group(shard * cp, 1, links)
    replicas = Group(replicate, shard * cp, links)
    inner, embeddings = parameters(config.model)
    of_blocks, of_embeddings = _trained(config.model, stage)
    size, micro = element(config.compute), stage.grad_accum
    reductions = micro if config.parallel.reduce_always else 1
    layers = config.model.n_layers
    gathers = shards.gather(size * inner / layers) * (layers * micro)
    reduced = shards.gather(4 * of_blocks / layers) * layers + replicas.reduce(4 * of_blocks / shards.size)
    ends = shards.gather(size * embeddings) * micro + shards.gather(4 * of_embeddings) * reductions
    ends += replicas.reduce(4 * of_embeddings / shards.size) * reductions
    if config.optim.kind == "muon":  # ranks exchange rows for whole matrices, and back
        ends += shards.exchange(2 * of_blocks / shards.size) * 2
    between, ring = _context(config, stage, Group(cp, 1, links), stage.n_sequences // (replicate * shard))
    return Traffic(gathers, gathers + reduced * reductions, ends, between, ring)


def _trained(model: ModelConfig, stage: Stage) -> tuple[int, int]:
    """Return the number of trained weights of the blocks (with the last norm), and of the embeddings."""
    trained = Trained(model, stage.frozen)
    tables = model.vocab_size * model.dim * (trained.embedding + (trained.head and not model.tie_embeddings))
    return trained.weights - tables, tables


def _context(config: Config, stage: Stage, group: Group, sequences: int) -> tuple[Transfer, Transfer]:
    """Return the transfers of context parallelism in a step: between computations, and beside attention."""
    between = ring = NOTHING
    if group.size == 1:
        return between, ring
    model, compute = config.model, config.compute
    method = pick_method(config.parallel.cp_attention.value, model.n_heads, model.n_kv_heads, group.size)
    sliding, sliding_window = sliding_layers(model), model.sliding_window or 0
    for number in range(model.n_layers):
        again = compute.recompute is Recompute.full and number % compute.recompute_every == 0
        passes, size = 3 if again else 2, element(compute)
        if number in sliding and sliding_window < stage.seq_len and method == "ring":
            between += _before(model, sliding_window, sequences, size, group, passes)
            continue
        dense = number in sliding or number in stage.dense_layers or stage.n_attended == stage.seq_len
        whole = dense or stage.own_queries  # ranks have some heads of whole sequences
        tokens = sequences * (stage.seq_len if whole else stage.n_attended) / group.size
        if method == "ring":
            ring += _ring(model, tokens, size, group, passes)
        else:
            both = model.n_heads * model.head_dim, 2 * model.n_kv_heads * model.head_dim
            sent = size * tokens
            between += (group.exchange(sent * sum(both)) + group.exchange(sent * both[0])) * passes
        if stage.window and not whole:
            between += _before(model, stage.window, sequences, size, group, passes)
    return between, ring


def _ring(model: ModelConfig, tokens: float, size: int, group: Group, passes: int) -> Transfer:
    """Return the transfers of a layer's ring: keys and values in each pass, their float32 gradients back."""
    kv = 2 * model.n_kv_heads * model.head_dim * tokens
    return group.pass_on(size * kv) * (passes * (group.size - 1)) + group.pass_on(4 * kv) * group.size


def _before(
    model: ModelConfig, window: int, sequences: int, size: int, group: Group, passes: int
) -> Transfer:
    """Return the transfers of the keys and values before each chunk, which a window reaches."""
    kv = 2 * model.n_kv_heads * model.head_dim * 2 * (window - 1) * sequences * group.size
    return group.gather(size * kv) * (passes - 1) + group.reduce(4 * kv)
