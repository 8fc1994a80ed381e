"""`--report` of the verbs that move numbers about: a page each, of what that verb knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def test_a_page_of_each_verb(isobit: Callable[..., Any], digits: Path, images: np.ndarray, tmp_path: Path) -> None:
    model, data, out = digits / "model.onnx", tmp_path / "c.npz", tmp_path / "out"
    encodings, seen = out / "encodings.json", tmp_path / "s.npz"
    np.savez(data, image=images[:4])
    verbs = {
        "calibrate": (model, "--data", data, "-o", out, "--write-statistics", seen),
        "transfer": (encodings, "--source", model, "--target", model, "-o", tmp_path / "t.json"),
        "convert": (encodings, tmp_path / "m.encodings", "--format", "aimet-1.0.0"),
        "dump": (model, "--data", data, "-o", tmp_path / "d.npz"),
        "inspect": (model,),
    }
    pages = {verb: _page(isobit, tmp_path, verb, *arguments) for verb, arguments in verbs.items()}
    written = json.loads(encodings.read_text("utf-8"))
    count = len(written["encodings"])
    quantizers = _section(pages["calibrate"], "Quantizers")
    assert len(quantizers["rows"]) == len(quantizers["plots"]) == count
    image = quantizers["plots"][0]
    assert (image["name"], sum(image["histogram"]["counts"])) == ("image", images[:4].size)
    assert len(_section(pages["transfer"], "Where each came from")["rows"]) == count
    assert _section(pages["transfer"], "Without a place")["rows"] == []
    assert len(_section(pages["convert"], "Encodings")["rows"]) == count
    assert any("biases" in line for line in _section(pages["convert"], "Notes")["lines"])
    first = _section(pages["dump"], "Tensors")["rows"][0]
    assert first[:3] == ["image", "image", str(images[:4].shape)]
    assert [first[4][1], first[5][1]] == [float(images[:4].min()), float(images[:4].max())]
    costs = _section(pages["inspect"], "What each layer costs")["rows"]
    assert sum(row[3][1] for row in costs) == 1
    kinds = {file: _page(isobit, tmp_path, "inspect", file) for file in (seen, encodings)}
    assert len(kinds[seen]["sections"][0]["content"]["rows"]) > 0
    assert len(_section(kinds[encodings], "Encodings")["rows"]) == count


def _page(isobit: Callable[..., Any], folder: Path, *arguments: Any) -> dict[str, Any]:
    """What the page of a verb draws."""
    path = folder / "report.html"
    result = isobit(*arguments, "--report", path)
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    found = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def _section(page: dict[str, Any], title: str) -> dict[str, Any]:
    return next(section["content"] for section in page["sections"] if section["title"] == title)
