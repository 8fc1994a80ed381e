"""The blocks of the page on PyTorch, in order, and the tutorial of training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_the_page_on_pytorch(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text("utf-8")
    blocks = list(re.finditer(r"```python\n(.*?)```", text, re.DOTALL))
    assert len(blocks) == 6
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        line = text[: block.start(1)].count("\n")  # a traceback points into the page
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    assert {"model.qdq.onnx", "model.pt2", "model.torchscript.pt", "encodings.json", "summary.txt"} == {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_the_tutorial_of_training(tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.with_name("training.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        if re.search("import keras|transformers|lightning", block):
            continue
        exec(compile(block, "training.md", "exec"), names)
    assert names["accuracy"] > 0.7


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit
def test_the_page_on_lora(tmp_path, monkeypatch) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", PAGE.with_name("lora.md").read_text("utf-8"), re.DOTALL)[:2]:
        exec(compile(block, "lora.md", "exec"), names)
    assert (tmp_path / "adapters" / "default" / "adapter_config.json").is_file()


def test_the_page_on_rounding() -> None:
    text = PAGE.with_name("rounding.md").read_text("utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "torch" in block]
    names: dict[str, object] = {"__name__": "__main__"}
    exec(compile(block, "rounding.md", "exec"), names)
    assert getattr(names["report"], "technique", "") == "ReconstructBlocks"
