"""Batches: reading ahead does not change them, and ranks divide a step correctly."""

import threading

import numpy as np
import pytest
import torch

from lhtrain.data import PADDING, SequenceOrder, Split, TokenStore
from lhtrain.data.store.tokens import TokenStoreWriter
from lhtrain.distributed.mesh import RankSlice
from lhtrain.loader import Apart, Loader, Read, batches, blank_batch, validation_batches
from lhtrain.stage import Stage

CPU = torch.device("cpu")
EOS = 999


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> SequenceOrder:
    path = tmp_path_factory.mktemp("loader") / "train.bin"
    with TokenStoreWriter(path, np.dtype("<u2")) as writer:
        for number in range(40):
            writer.append(np.arange(3 + 7 * number % 50))
            writer.end_document(EOS)
    return SequenceOrder(Split.whole(TokenStore(path)), [32, 16], seed=0)


@pytest.fixture(scope="module")
def apart_order(order: SequenceOrder) -> SequenceOrder:
    return SequenceOrder(order._pools[0].split, [32, 16], seed=0, alignment=4)


def stage(seq_len: int, batch_tokens: int = 128, grad_accum: int = 2) -> Stage:
    return Stage("s", "dense", seq_len, batch_tokens, grad_accum)


def run(loader: Loader, plan: list[Stage]) -> tuple[list[torch.Tensor], int]:
    position, seen = 0, []
    for step in plan:
        micro, position = loader.micro_batches(position, step)
        seen += [tensor for batch in micro for tensor in (batch.tokens, batch.targets)]
    loader.close()
    return seen, position


def test_reading_ahead_changes_nothing(order: SequenceOrder) -> None:
    """More than an epoch, with changes of the sequence length that the reader cannot foresee."""
    plan = [stage(16)] * 9 + [stage(32)] * 9 + [stage(16, batch_tokens=64)] * 9
    ahead, direct = (run(Loader(order, EOS, CPU, ahead=flag), plan) for flag in (True, False))
    assert ahead[1] == direct[1] > order.tokens_per_epoch
    for one, two in zip(ahead[0], direct[0], strict=True):
        assert torch.equal(one, two)


def test_an_error_of_the_thread_reaches_the_trainer(order: SequenceOrder, monkeypatch) -> None:
    read, here = order.read, threading.current_thread()

    def read_here_alone(*where):
        if threading.current_thread() is not here:
            raise OSError("disk gone")
        return read(*where)

    monkeypatch.setattr(order, "read", read_here_alone)
    loader = Loader(order, EOS, CPU)
    _, position = loader.micro_batches(0, stage(16))  # starts to read the next step
    with pytest.raises(OSError, match="disk gone"):
        loader.micro_batches(position, stage(16))
    loader.close()


def test_padding_is_end_of_text_as_input_and_no_target() -> None:
    rows = torch.tensor([[1, 2, PADDING], [3, PADDING, PADDING], [4, 5, 6], [7, 8, 9]])
    first, second = batches(Read.of(rows, 5, EOS, CPU), 2, CPU)
    assert first.tokens.tolist() == [[1, 2], [3, EOS]]
    assert first.targets.tolist() == [[2, PADDING], [PADDING, PADDING]]
    assert (first.n_targets, second.n_targets) == (1, 4)
    assert (first.loss_weight, second.loss_weight) == (0.2, 0.8)


@pytest.mark.parametrize("share", [RankSlice(), RankSlice(0, 1, 1, 2)])
def test_a_gpu_copies_from_contiguous_pinned_memory(order, monkeypatch, share) -> None:
    """The host would wait for a copy from any other memory."""
    pinned = []

    def pin_memory(tensor):
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    rows = torch.from_numpy(order.read(0, 4, 32))
    read = Read.of(rows, 128, EOS, torch.device("cuda"), share)
    tensors = [x for x in read[:3] if x is not None]
    assert len(tensors) == len(pinned) and all(x is y for x, y in zip(tensors, pinned, strict=True))
    assert all(x.is_contiguous() for x in tensors)
    assert all(part.is_contiguous() for x in tensors[:2] for part in x.chunk(2))


@pytest.mark.gpu
@pytest.mark.parametrize("share", [RankSlice(), RankSlice(0, 1, 1, 2)])
def test_the_host_does_not_wait_for_a_copy_to_the_gpu(share) -> None:
    """While the GPU is busy for a second, the call returns at once, and the batches are right."""
    device = torch.device("cuda")
    rows = torch.arange(8 * 65537).view(8, 65537)
    wanted = batches(Read.of(rows, 1, EOS, CPU, share), 4, CPU)
    read = Read.of(rows, 1, EOS, device, share)
    batches(read, 4, device)  # allocates the memory before the measurement
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)
    busy.record()
    found = batches(read, 4, device)
    assert not busy.query()
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.tokens.cpu(), other.tokens) and torch.equal(one.targets.cpu(), other.targets)


def test_validation_reads_the_given_number_of_tokens(order: SequenceOrder) -> None:
    found = list(validation_batches(order, 200, stage(16), EOS, CPU))
    assert 176 < sum(batch.n_targets for batch in found) <= 192


@pytest.mark.parametrize("dp_size", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 32, 96, 160, 10**9])
def test_validation_batches_have_one_shape_on_every_rank(order: SequenceOrder, tokens: int, dp_size) -> None:
    """Another shape would be compiled on one rank while the others wait."""
    plan = stage(16, batch_tokens=16 * 3 * dp_size, grad_accum=1)
    parts = [
        list(validation_batches(order, tokens, plan, EOS, CPU, RankSlice(r, dp_size))) for r in range(dp_size)
    ]
    assert {batch.tokens.shape for part in parts for batch in part} == {(3, 16)}
    assert len({len(part) for part in parts}) == 1
    whole = max(min(tokens, order.tokens_per_epoch) // 32, 1) * 2
    seen = torch.cat([batch.targets for part in parts for batch in part])
    wanted = torch.from_numpy(order.read(0, whole, 16)[:, 1:])
    assert (seen != PADDING).sum() == (wanted != PADDING).sum() > 0


@pytest.mark.parametrize(("dp_size", "cp_size"), [(4, 1), (1, 2), (2, 4)])
def test_ranks_divide_a_step(order: SequenceOrder, dp_size: int, cp_size: int) -> None:
    """Every token and target occurs once, the weights add up to 1, and all ranks have the same position."""
    whole, after = Loader(order, EOS, CPU, ahead=False).micro_batches(32, stage(32, grad_accum=1))
    wanted = sorted(zip(whole[0].tokens.flatten().tolist(), whole[0].targets.flatten().tolist(), strict=True))
    found, share = [], 0.0
    for rank in range(dp_size * cp_size):
        part = RankSlice(rank // cp_size, dp_size, rank % cp_size, cp_size)
        (batch,), position = Loader(order, EOS, CPU, part, ahead=False).micro_batches(
            32, stage(32, grad_accum=1)
        )
        found += zip(batch.tokens.flatten().tolist(), batch.targets.flatten().tolist(), strict=True)
        share += batch.loss_weight
        assert position == after
        if cp_size > 1:
            assert torch.equal(batch.positions, part.positions(32))
    assert sorted(found) == wanted and share == pytest.approx(1)


def test_validation_gives_every_rank_the_same_number_of_batches(order: SequenceOrder) -> None:
    """Three sequences on two ranks: the last batch of the second rank has no targets."""
    parts = [RankSlice(rank, 2) for rank in range(2)]
    plan = stage(32, batch_tokens=64, grad_accum=1)
    found = [list(validation_batches(order, 96, plan, EOS, CPU, part)) for part in parts]
    assert [len(part) for part in found] == [2, 2] and found[1][-1].n_targets == 0
    alone = list(validation_batches(order, 96, plan, EOS, CPU))
    assert sum(b.n_targets for part in found for b in part) == sum(b.n_targets for b in alone)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("seq_len", [16, 32])
def test_documents_apart(apart_order: SequenceOrder, seq_len: int, restarted: bool) -> None:
    """A target is the next token of its document; every batch has as many boundaries."""
    apart = Apart.of([apart_order], {16, 32}, restarted)
    plan, position = stage(seq_len), 0
    loader = Loader(apart_order, EOS, CPU, apart=apart, ahead=False)
    alike = blank_batch(plan, CPU, apart=apart)
    n_documents = 0
    for _ in range(5):
        found, position = loader.micro_batches(position, plan)
        assert sum(batch.loss_weight for batch in found) == pytest.approx(1)
        for batch in found:
            starts, bounds = batch.documents
            assert bounds.shape == alike.documents.bounds.shape and starts.shape == alike.tokens.shape
            assert set((starts % 4).flatten().tolist()) == {0}
            begins = starts == torch.arange(seq_len)
            n_documents += int(begins.sum())
            assert (batch.targets[:, :-1][begins[:, 1:]] == PADDING).all()
            inside = (batch.targets != PADDING)[:, :-1]
            assert torch.equal(batch.targets[:, :-1][inside], batch.tokens[:, 1:][inside])
            assert (batch.positions is None) is not restarted
            if restarted:
                assert torch.equal(batch.positions, torch.arange(seq_len) - starts)
                assert batch.positions.shape == alike.positions.shape
    assert n_documents > 20


def test_more_documents_than_were_known_make_room_for_more(apart_order: SequenceOrder) -> None:
    """As in data that are tokenized during training."""
    plan, known = stage(32, batch_tokens=64, grad_accum=1), Apart({32: 1}, {32: 1.0})
    enough = Apart.of([apart_order], {32}, restarted=False)
    sizes = []
    for position in range(0, 64 * 9, 64):
        (found,), _ = Loader(apart_order, EOS, CPU, apart=known, ahead=False).micro_batches(position, plan)
        (wanted,), _ = Loader(apart_order, EOS, CPU, apart=enough, ahead=False).micro_batches(position, plan)
        assert torch.equal(found.documents.starts, wanted.documents.starts)
        assert torch.equal(found.documents.bounds.unique(), wanted.documents.bounds.unique())
        sizes.append(len(found.documents.bounds))
    assert sizes == sorted(sizes) and len(set(sizes)) <= 2 and known.most[32] > 1


def test_documents_apart_of_ranks(apart_order: SequenceOrder) -> None:
    """Ranks that share sequences have the boundaries of whole sequences, and the starts of their tokens."""
    apart = Apart.of([apart_order], {32}, restarted=True)
    plan = stage(32, grad_accum=1)
    (whole,), _ = Loader(apart_order, EOS, CPU, apart=apart, ahead=False).micro_batches(64, plan)
    for rank in range(4):
        part = RankSlice(rank // 2, 2, rank % 2, 2)
        (batch,), _ = Loader(apart_order, EOS, CPU, part, apart, ahead=False).micro_batches(64, plan)
        here = slice(2 * part.dp_rank, 2 * part.dp_rank + 2), part.positions(32)
        for one, other in zip(batch[:3], whole[:3], strict=True):
            assert torch.equal(one, other[here])
        assert torch.equal(batch.documents.starts, whole.documents.starts[here])
        begins = batch.documents.bounds.unique()
        of_rank = whole.documents.bounds.unique() - 64 * part.dp_rank
        assert torch.equal(begins, of_rank[(of_rank >= 0) & (of_rank <= 64)])


def test_validation_with_documents_apart(apart_order: SequenceOrder) -> None:
    """Sequences that are missing have one document, without targets."""
    apart = Apart.of([apart_order], {16, 32}, restarted=False)
    plan = stage(16, batch_tokens=16 * 3, grad_accum=1)
    found = list(validation_batches(apart_order, 160, plan, EOS, CPU, apart=apart))
    assert {batch.documents.bounds.shape for batch in found} == {(3 * apart.most[16] + 1,)}
    assert sum(batch.n_targets for batch in found) == apart_order.n_targets(0, 10, 16)
    assert (found[-1].documents.starts[1:] == 0).all() and (found[-1].targets[1:] == PADDING).all()
