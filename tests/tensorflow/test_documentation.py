"""The Python blocks of docs/keras.md, in order; tests/docs passes them over, having no TensorFlow."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "keras.md"


def test_the_page_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.qdq.onnx", "encodings.json", "summary.txt"}


def test_the_tutorial_of_training(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.with_name("training.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "import keras" in block]
    names: dict[str, object] = {}
    exec(compile(block, "training.md", "exec"), names)
    assert names["history"].history["accuracy"][-1] > 0.7


def test_the_page_on_lora(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```python\n(.*?)```", PAGE.with_name("lora.md").read_text("utf-8"), re.DOTALL)[2]
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block, "lora.md", "exec"), names)
    losses = names["history"].history["loss"]
    assert losses[-1] < losses[0]
