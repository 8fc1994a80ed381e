"""What kind of file it is: magika, from bytes as integers, an export of JAX."""

from __future__ import annotations

import csv
import inspect
import io
import json
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "magika==1.0.3"
FILE = "magika/models/standard_v3_3/model.onnx"
PADDING, HALF = 256, 1024


def features(content: bytes) -> NDArray[np.int32]:
    """The first and the last 1,024 bytes, without blanks at the ends of the file."""
    begin, end = content[:4096].lstrip()[:HALF], content[-4096:].rstrip()[-HALF:]
    row = np.full(2 * HALF, PADDING, np.int32)
    row[: len(begin)] = list(begin)
    row[2 * HALF - len(end) :] = list(end)
    return row


@cache
def contents() -> list[tuple[str, bytes]]:
    """Files of this Python and files made here, with their kinds."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found = [("python", file.read_bytes()) for file in sorted(library.glob("*.py"))[:120]]
    headers = Path(sysconfig.get_paths()["include"])
    found += [("c", file.read_bytes()) for file in sorted(headers.rglob("*.h"))[:100]]
    for module in (json, csv, io, inspect, np, np.linalg, np.fft, np.random):
        for name in sorted(vars(module)):
            text = inspect.getdoc(getattr(module, name)) or ""
            if len(text) > 800 and len(found) < 400:
                found.append(("text", text.encode()))
    rng = np.random.default_rng(0)
    for count in range(3, 33):
        table = [
            {"name": f"item {i}", "value": float(rng.random()), "count": int(rng.integers(99))} for i in range(count)
        ]
        found.append(("json", json.dumps({"items": table, "total": count}, indent=2).encode()))
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
        found.append(("csv", sheet.getvalue().encode()))
        cells = "".join(f"<tr><td>{row['name']}</td><td>{row['value']}</td></tr>\n" for row in table)
        page = (
            f"<!DOCTYPE html>\n<html><head><title>Items</title></head>\n<body><table>\n{cells}</table></body></html>\n"
        )
        found.append(("html", page.encode()))
        buffer = io.BytesIO()
        np.save(buffer, rng.standard_normal((count, 7)))
        found.append(("npy", buffer.getvalue()))
    return found


def batches(start: int, step: int, size: int = 32) -> list[tuple[list[str], Batch]]:
    """Every so many of the files, as batches with their kinds."""
    chosen = contents()[start::step]
    return [
        (
            [kind for kind, _ in chosen[i : i + size]],
            {"bytes": np.stack([features(content) for _, content in chosen[i : i + size]])},
        )
        for i in range(0, len(chosen), size)
    ]


def figure(run: Run) -> float:
    """Files whose kind is found, in percent; a docstring is any kind of text."""
    kinds = json.loads(shipped(WHEEL, FILE).with_name("config.min.json").read_text())["target_labels_space"]
    texts = {"txt", "markdown", "rst", "randomtxt"}
    right = total = 0
    for expected, batch in batches(1, 2):
        for kind, best in zip(expected, run(batch)[0].argmax(1), strict=True):
            right += kinds[best] == kind or (kind == "text" and kinds[best] in texts)
            total += 1
    return 100 * right / total


NETWORKS = (
    ZooNetwork(
        name="magika",
        wheel=WHEEL,
        file=FILE,
        task="kinds of some 250 files: Python, C, docstrings, JSON, CSV, HTML, NumPy",
        model=lambda: shipped(WHEEL, FILE),
        data=lambda: [batch for _, batch in batches(0, 2)],
        held_out=lambda: batches(1, 2)[0][1],
        figure=figure,
    ),
)
