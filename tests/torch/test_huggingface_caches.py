"""HuggingFace decoders as they are made: caches that are returned, taken or asked for. The model is the reference."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import isobit
from isobit.errors import ModelError

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def _model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "opt":
        config = transformers.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=32, **SIZES)
    elif kind == "neox":
        config = transformers.GPTNeoXConfig(max_position_embeddings=32, intermediate_size=24, **SIZES)
    elif kind == "llama":
        config = transformers.LlamaConfig(intermediate_size=24, **SIZES)
    else:
        config = transformers.MistralConfig(num_key_value_heads=1, sliding_window=4, intermediate_size=24, **SIZES)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def _prompt(batch: int = 3, length: int = 6) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 40, (batch, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _step(heads: int, batch: int = 3) -> dict[str, Any]:
    cache = transformers.DynamicCache()
    cache.update(torch.randn(batch, heads, 4, 8), torch.randn(batch, heads, 4, 8), 0)
    ids = torch.randint(3, 40, (batch, 1))
    return {"input_ids": ids, "attention_mask": torch.ones(batch, 5, dtype=torch.int64), "past_key_values": cache}


@pytest.mark.parametrize("kind", ["opt", "mistral", "llama"])
def test_decoders_open_as_they_are_made(kind: str) -> None:
    model = _model(kind)
    sim = isobit.quantize(model, [_prompt()], progress=False, method="minmax")
    assert any("use_cache" in note for note in sim.graph.notes)
    assert model.config.use_cache
    for batch in (_prompt(), _prompt(5, 8)):
        found = sim.run_float(batch)
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], model(**batch).logits.detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "heads"), [("neox", 2), ("mistral", 1)])
def test_a_step_takes_and_returns_its_cache_as_tensors(kind: str, heads: int, tmp_path) -> None:
    model = _model(kind)
    data = [_step(heads) for _ in range(2)]
    sim = isobit.quantize(model, data, progress=False, method="minmax")
    assert [len(layer.keys[0, 0]) for layer in data[0]["past_key_values"].layers] == [4]
    assert [name for name in sim.graph.inputs if name.startswith("past_key_values")] == [
        "past_key_values_0_0",
        "past_key_values_0_1",
    ]
    batch = _step(heads, batch=2)
    expected = model(**copy.deepcopy(batch))
    found = sim.run_float(batch)
    np.testing.assert_allclose(found["logits"], expected.logits.detach().numpy(), rtol=1e-3, atol=1e-4)
    for index, layer in enumerate(expected.past_key_values.layers):
        for part, value in enumerate((layer.keys, layer.values)):
            np.testing.assert_allclose(found[f"past_key_values.{index}.{part}"], value.detach(), rtol=1e-3, atol=1e-4)
    returned = sim.model(**batch)
    np.testing.assert_array_equal(returned.logits.detach().numpy(), sim.run(batch)["logits"])
    assert returned.past_key_values[0][0].shape[2] == 5
    assert sim.export(tmp_path)["model"].exists()


def test_a_cache_that_is_asked_for_is_returned() -> None:
    model, batch = _model("llama"), {**_prompt(), "use_cache": True}
    sim = isobit.quantize(model, [batch], progress=False, method="minmax")
    expected = model(**batch).past_key_values.layers[0].values.detach()
    np.testing.assert_allclose(sim.run_float(batch)["past_key_values.0.1"], expected, rtol=1e-3, atol=1e-4)


def test_encoder_and_decoder() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config).eval()
    batch = {"input_ids": torch.randint(3, 40, (3, 6)), "decoder_input_ids": torch.randint(3, 40, (3, 4))}
    expected = model(**batch)
    sim = isobit.quantize(model, [batch], progress=False, method="minmax")
    np.testing.assert_allclose(sim.run_float(batch)["logits"], expected.logits.detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="'past_key_values' is a EncoderDecoderCache.*give a DynamicCache"):
        isobit.quantize(
            model, [{**batch, "past_key_values": expected.past_key_values}], progress=False, method="minmax"
        )


def test_a_cache_of_fixed_size_is_refused_in_words() -> None:
    model = _model("llama")
    cache = transformers.StaticCache(config=model.config, max_cache_len=8)
    step = {"input_ids": torch.randint(3, 40, (2, 1)), "past_key_values": cache}
    with pytest.raises(ModelError, match="'past_key_values' is a StaticCache.*keys and values as tensors"):
        isobit.quantize(model, [step], progress=False, method="minmax")
