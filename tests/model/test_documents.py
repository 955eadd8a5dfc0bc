"""A model whose sequences are packed documents, kept apart."""

import pytest
import torch
import torch._dynamo.testing

from lhtrain.attention.documents import documents_of, positions_in_documents
from lhtrain.conf.schema import ModelConfig
from lhtrain.model.decoder import GPT, run_plainly

SEQ_LEN, BEGINS = 48, [[16, 20], [47]]
SPANS = [(0, 0, 16), (0, 16, 20), (0, 20, 48), (1, 0, 47), (1, 47, 48)]  # row, begin, end


@pytest.fixture(scope="module")
def model() -> GPT:
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "ffn_dim": 48}
    model = GPT(ModelConfig(name="t", seq_len=SEQ_LEN, vocab_size=64, **sizes))
    model.init_weights(0)
    return model


def drawn() -> torch.Tensor:
    return torch.randint(64, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("restarted", [True, False])
def test_each_document_is_as_if_alone(model, restarted):
    tokens, documents = drawn(), documents_of(BEGINS, SEQ_LEN, most=5)
    positions = positions_in_documents(documents.starts) if restarted else None
    hidden = model.hidden(tokens, positions, documents)
    for row, begin, end in SPANS:
        first = 0 if restarted else begin
        alone = model.hidden(tokens[row : row + 1, begin:end], torch.arange(first, first + end - begin))
        torch.testing.assert_close(hidden[row, begin:end], alone[0])


def test_a_token_changes_its_own_document_alone(model):
    """No bit of another document's output changes, nor of the gradient of its embeddings."""

    def results(tokens):
        embedded = []
        hook = model.embedding.register_forward_hook(lambda *call: embedded.append(call[2]))
        hidden = model.hidden(tokens, documents=documents_of(BEGINS, SEQ_LEN, most=5))
        hook.remove()
        return hidden, torch.autograd.grad(hidden.square().sum(), embedded[0])[0]

    tokens = drawn()
    changed = tokens.clone()
    changed[0, 18] = (changed[0, 18] + 1) % 64
    others = torch.ones(2, SEQ_LEN, dtype=torch.bool)
    others[0, 16:20] = False
    for one, other in zip(results(changed), results(tokens), strict=True):
        assert torch.equal(one[others], other[others])
        assert not torch.equal(one[0, 16:20], other[0, 16:20])


@pytest.mark.slow
def test_other_boundaries_do_not_compile_a_block_again(model):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    run = torch.compile(run_plainly, fullgraph=True, dynamic=False, backend=counter)
    tokens = drawn()
    for begins in (BEGINS, [[], []], [[1, 2, 3, 4], [30]]):
        documents = documents_of(begins, SEQ_LEN, most=5)
        positions = positions_in_documents(documents.starts)
        want = model.loss(tokens, tokens, positions, documents=documents)
        for block in model.blocks:
            block.run = run
        got = model.loss(tokens, tokens, positions, documents=documents)
        got.backward()
        for block in model.blocks:
            block.run = run_plainly
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 1
