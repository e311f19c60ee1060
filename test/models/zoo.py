"""Small Hugging Face models from their configs, with random weights, and inputs for each.

Out: `ZOO`, name -> a function that gives (model, keyword arguments of its forward). No network:
nothing is loaded. Sizes are as small as the architecture allows, so that a whole sweep takes
minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

BATCH, LENGTH, VOCAB = 2, 24, 99
Made = tuple[torch.nn.Module, dict[str, torch.Tensor]]


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, VOCAB, (BATCH, length))


def masked_tokens() -> dict[str, torch.Tensor]:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, LENGTH // 2 :] = 0
    return {"input_ids": tokens(), "attention_mask": mask}


def text_config(**more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, pad_token_id=0, **more,
    )  # fmt: skip


def labelled(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**inputs, "labels": inputs["input_ids"].clone()}


def bert() -> Made:
    import transformers as t

    return t.BertForMaskedLM(t.BertConfig(**text_config())), labelled(masked_tokens())


def distilbert() -> Made:
    import transformers as t

    config = t.DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    )
    return t.DistilBertForMaskedLM(config), labelled(masked_tokens())


def albert() -> Made:
    import transformers as t

    return t.AlbertForMaskedLM(t.AlbertConfig(embedding_size=16, **text_config())), labelled(
        masked_tokens()
    )


def gpt2() -> Made:
    import transformers as t

    config = t.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    return t.GPT2LMHeadModel(config), labelled({"input_ids": tokens()})


def llama() -> Made:
    import transformers as t

    config = t.LlamaConfig(num_key_value_heads=2, **text_config())
    return t.LlamaForCausalLM(config), labelled({"input_ids": tokens()})


def qwen3() -> Made:
    import transformers as t

    config = t.Qwen3Config(num_key_value_heads=2, head_dim=8, **text_config())
    return t.Qwen3ForCausalLM(config), labelled({"input_ids": tokens()})


def qwen3_moe() -> Made:
    import transformers as t

    config = t.Qwen3MoeConfig(
        num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, **text_config(),
    )  # fmt: skip
    return t.Qwen3MoeForCausalLM(config), labelled({"input_ids": tokens()})


def gemma3() -> Made:
    import transformers as t

    config = t.Gemma3TextConfig(
        num_key_value_heads=2, head_dim=8, sliding_window=8, **text_config()
    )
    return t.Gemma3ForCausalLM(config), labelled({"input_ids": tokens()})


def phi3() -> Made:
    import transformers as t

    config = t.Phi3Config(num_key_value_heads=2, **text_config())
    return t.Phi3ForCausalLM(config), labelled({"input_ids": tokens()})


def t5() -> Made:
    import transformers as t

    config = t.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    return t.T5ForConditionalGeneration(config), {"input_ids": tokens(), "labels": tokens(12)}


def bart() -> Made:
    import transformers as t

    config = t.BartConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=64,
    )  # fmt: skip
    return t.BartForConditionalGeneration(config), {"input_ids": tokens(), "labels": tokens(12)}


def vit() -> Made:
    import transformers as t

    config = t.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        image_size=32, patch_size=8, num_labels=5,
    )  # fmt: skip
    inputs = {"pixel_values": torch.randn(BATCH, 3, 32, 32), "labels": torch.tensor([1, 4])}
    return t.ViTForImageClassification(config), inputs


def convnext() -> Made:
    import transformers as t

    config = t.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=5)
    inputs = {"pixel_values": torch.randn(BATCH, 3, 32, 32), "labels": torch.tensor([1, 4])}
    return t.ConvNextForImageClassification(config), inputs


def mamba() -> Made:
    import transformers as t

    config = t.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, state_size=8, num_hidden_layers=2, intermediate_size=64
    )
    return t.MambaForCausalLM(config), labelled({"input_ids": tokens(8)})


def whisper() -> Made:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=16,
        max_source_positions=20, max_target_positions=32, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config), {
        "input_features": torch.randn(BATCH, 16, 40),
        "labels": tokens(12),
    }


ZOO: dict[str, Callable[[], Made]] = {
    f.__name__: f
    for f in (
        bert, gpt2, llama, qwen3, gemma3, t5, bart, vit, convnext, mamba, whisper, distilbert,
        albert,
        phi3, qwen3_moe,
    )
}  # fmt: skip


def make(name: str, dtype: torch.dtype = torch.float32, train: bool = False) -> Made:
    """A model of the zoo without dropout, and its inputs, in `dtype`; the same for every call."""
    torch.manual_seed(0)
    model, inputs = ZOO[name]()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    # The grouped product of the experts has no float64 form; a loop over them has.
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    model = model.to(dtype).train(train)
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    return model, cast
