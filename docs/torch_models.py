"""Small versions of well-known architectures through the whole way: open, calibrate, run, export, onnxruntime.

Writes docs/torch-models.md. Random weights (He-scaled where convolutions would fade to nothing), default target, batch
norms folded, min-max calibration. ``python docs/torch_models.py [NAME ...]``; names alone print and write nothing.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

import isobit


def architectures() -> dict[str, Any]:
    """For each name, what makes the module and one batch of its inputs."""
    t = transformers
    kw = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    dec = dict(vocab_size=100, use_cache=False, **kw)
    ids = torch.randint(0, 90, (2, 7))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    text["attention_mask"][1, 5:] = 0
    img = {"pixel_values": torch.randn(2, 3, 32, 32)}
    return {
        "bert": lambda: (t.BertModel(t.BertConfig(vocab_size=100, **kw)), text),
        "distilbert": lambda: (
            t.DistilBertModel(t.DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64)),
            text,
        ),
        "roberta": lambda: (t.RobertaModel(t.RobertaConfig(vocab_size=100, **kw)), text),
        "albert": lambda: (t.AlbertModel(t.AlbertConfig(vocab_size=100, embedding_size=16, **kw)), text),
        "deberta": lambda: (
            t.DebertaV2Model(
                t.DebertaV2Config(
                    vocab_size=100, relative_attention=True, position_buckets=8, pos_att_type=["c2p", "p2c"], **kw
                )
            ),
            text,
        ),
        "t5": lambda: (
            t.T5EncoderModel(t.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)),
            text,
        ),
        "gpt2": lambda: (
            t.GPT2Model(t.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, use_cache=False)),
            text,
        ),
        "opt": lambda: (
            t.OPTModel(
                t.OPTConfig(
                    vocab_size=100,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    ffn_dim=64,
                    word_embed_proj_dim=32,
                    use_cache=False,
                )
            ),
            text,
        ),
        "llama": lambda: (t.LlamaModel(t.LlamaConfig(**dec)), text),
        "mistral": lambda: (t.MistralModel(t.MistralConfig(num_key_value_heads=2, **dec)), text),
        "qwen2": lambda: (t.Qwen2Model(t.Qwen2Config(num_key_value_heads=2, **dec)), text),
        "phi": lambda: (t.PhiModel(t.PhiConfig(**dec)), text),
        "gemma": lambda: (t.GemmaModel(t.GemmaConfig(head_dim=8, num_key_value_heads=2, pad_token_id=0, **dec)), text),
        "vit": lambda: (t.ViTModel(t.ViTConfig(image_size=32, patch_size=8, **kw)), img),
        "deit": lambda: (t.DeiTModel(t.DeiTConfig(image_size=32, patch_size=8, **kw)), img),
        "beit": lambda: (t.BeitModel(t.BeitConfig(image_size=32, patch_size=8, **kw)), img),
        "swin": lambda: (
            t.SwinModel(
                t.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
            ),
            img,
        ),
        "convnext": lambda: (t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)), img),
        "resnet": lambda: (
            t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")),
            img,
        ),
        "regnet": lambda: (
            t.RegNetModel(t.RegNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8)),
            img,
        ),
        "mobilenetv1": lambda: (t.MobileNetV1Model(t.MobileNetV1Config(depth_multiplier=0.25)), img),
        "mobilenetv2": lambda: (t.MobileNetV2Model(t.MobileNetV2Config(depth_multiplier=0.25)), img),
        "mobilevit": lambda: (
            t.MobileViTModel(
                t.MobileViTConfig(
                    image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 32]
                )
            ),
            {"pixel_values": torch.randn(2, 3, 64, 64)},
        ),
        "efficientnet": lambda: (
            t.EfficientNetModel(
                t.EfficientNetConfig(image_size=32, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640)
            ),
            img,
        ),
        "segformer": lambda: (
            t.SegformerModel(
                t.SegformerConfig(
                    hidden_sizes=[8, 16, 16, 32],
                    depths=[1, 1, 1, 1],
                    num_attention_heads=[1, 2, 2, 4],
                    decoder_hidden_size=16,
                )
            ),
            {"pixel_values": torch.randn(2, 3, 64, 64)},
        ),
        "wav2vec2": lambda: (
            t.Wav2Vec2Model(
                t.Wav2Vec2Config(
                    conv_dim=(16, 16),
                    conv_stride=(5, 2),
                    conv_kernel=(10, 3),
                    num_feat_extract_layers=2,
                    num_conv_pos_embeddings=8,
                    num_conv_pos_embedding_groups=2,
                    vocab_size=32,
                    **kw,
                )
            ),
            {"input_values": torch.randn(2, 400)},
        ),
        "whisper": lambda: (
            t.WhisperModel(
                t.WhisperConfig(
                    d_model=32,
                    encoder_layers=2,
                    decoder_layers=2,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=64,
                    decoder_ffn_dim=64,
                    max_source_positions=50,
                    num_mel_bins=16,
                    vocab_size=100,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                    decoder_start_token_id=1,
                    begin_suppress_tokens=None,
                    suppress_tokens=None,
                )
            ).encoder,
            {"input_features": torch.randn(2, 16, 100)},
        ),
        "clip": lambda: (t.CLIPVisionModel(t.CLIPVisionConfig(image_size=32, patch_size=8, **kw)), img),
    }


def like(example: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Another batch of the example's kind."""
    made = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(x.shape, generator=made)
        if x.is_floating_point()
        else torch.randint(1, 90, x.shape, generator=made)
        if name == "input_ids"
        else x
        for name, x in example.items()
    }


def decibels(signal: np.ndarray, other: np.ndarray) -> str:
    """Signal-to-noise ratio in dB; "equal" where every bit agrees."""
    if np.array_equal(signal, other):
        return "equal"
    noise = np.square(signal.astype(np.float64) - other).sum()
    return f"{10 * np.log10(np.square(signal.astype(np.float64)).sum() / noise):.1f}"


def scaled(module: torch.nn.Module) -> torch.nn.Module:
    """He-scaled convolutions, in evaluation mode."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return module.eval()


def row(name: str, make: Any) -> str:
    """One line of the table."""
    stage = "build"
    try:
        torch.manual_seed(0)
        module, example = make()
        scaled(module)
        stage = "open"
        sim = isobit.QuantSim(module, example)
        with torch.no_grad():
            expected = module(**example)[0].numpy()
        key = next(iter(sim.graph.outputs))
        error = np.abs(sim.run_float(example)[key] - expected).max()
        data = [like(example, seed) for seed in range(3)]
        stage = "calibrate"
        sim.apply(isobit.techniques.FoldBatchNorms())
        sim.calibrate(data, progress=False)
        simulated, plain = sim.run(data[0])[key], sim.run_float(data[0])[key]
        stage = "export"
        with tempfile.TemporaryDirectory() as folder:
            paths = sim.export(folder)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            session = onnxruntime.InferenceSession(str(paths["model"]), options)
            feeds = {i.name: data[0][i.name].numpy() for i in session.get_inputs()}
            executed = session.run([key], feeds)[0]
    except Exception as failure:
        return f"| {name} | no, at {stage}: {type(failure).__name__}: {' '.join(str(failure).split())[:200]} | | | | |"
    floats = ", ".join(dict.fromkeys(note.split(" at ")[0] for note in sim.graph.notes)) or "none"
    figures = f"{error:.0e} | {decibels(plain, simulated)} | {decibels(simulated, executed)}"
    return f"| {name} | yes, {len(sim.plan.placements)} sites | {figures} | {floats} |"


def main() -> None:
    """Print the table; write it when no name is given."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    wanted, lines = sys.argv[1:], [HEADER]
    for name, make in architectures().items():
        if not wanted or name in wanted:
            lines.append(row(name, make))
            print(lines[-1], flush=True)
    if not wanted:
        versions = (
            f"torch {torch.__version__}, transformers {transformers.__version__}, onnxruntime {onnxruntime.__version__}"
        )
        text = "\n".join(lines)
        Path(__file__).with_name("torch-models.md").write_text(
            f"{text}\n\nMade by docs/torch_models.py with {versions}.\n"
        )


HEADER = """# PyTorch architectures

Small versions with random weights, opened, batch norms folded, calibrated (min-max), run, and exported to a QDQ model
that onnxruntime runs in float (`session.disable_quant_qdq`). SQNR in dB: the simulator against the float model, and
onnxruntime against the simulator.

| architecture | works | float error | simulator | onnxruntime | operations without a mapping, left in float |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
