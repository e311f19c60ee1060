"""One compiled model serves every batch and length: at most two compilations."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from test.models import zoo


def bert() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=zoo.VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.BertModel(config).eval()


def test_bert_of_many_shapes() -> None:
    model = bert()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="helion", dynamic=True)
    with torch.no_grad():
        for batch in (1, 2, 3, 7):
            for length in (16, 33, 128):
                tokens = torch.randint(3, zoo.VOCAB, (batch, length))
                mask = torch.ones(batch, length, dtype=torch.int64)
                mask[-1, length // 2 :] = 0
                got = compiled(input_ids=tokens, attention_mask=mask).last_hidden_state
                want = model(input_ids=tokens, attention_mask=mask).last_hidden_state
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2  # a batch of one, and all others
