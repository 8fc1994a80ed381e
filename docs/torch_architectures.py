"""Small versions of well-known architectures, with random weights, and one batch of inputs for each.

``ARCHITECTURES`` maps a name to what makes (module, batch). Heads are those that people ship, so most have logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import nn

Batch = dict[str, torch.Tensor]
Made = tuple[nn.Module, Batch]

BATCH, LENGTH = 4, 12
_SIZES: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
}  # fmt: skip
_TEXT: dict[str, Any] = {"vocab_size": 100, **_SIZES}
_DECODER: dict[str, Any] = {"use_cache": False, **_TEXT, "num_hidden_layers": 1}
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, **_DECODER}
_PATCHES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_labels": 10, **_SIZES}
_SPEECH: dict[str, Any] = {
    "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 32, **_SIZES,
}  # fmt: skip
_PAIR: dict[str, Any] = {
    "vocab_size": 100, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "use_cache": False,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": 100, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "use_cache": False,
    "decoder_start_token_id": 0,
}  # fmt: skip


def text(length: int = LENGTH) -> Batch:
    """Token ids, the last ones of one sample padded."""
    ids = torch.randint(3, 90, (BATCH, length))
    mask = torch.ones_like(ids)
    mask[1, length - 4 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _tokens() -> Batch:
    return {"input_ids": text()["input_ids"]}


def _two_texts() -> Batch:
    return {**text(), "decoder_input_ids": torch.randint(3, 90, (BATCH, 7))}


def image(size: int = 32) -> Batch:
    """Normalised pixels."""
    return {"pixel_values": torch.randn(BATCH, 3, size, size)}


def _patches() -> Batch:
    """Each patch behind its row and column, as Pix2Struct reads them."""
    places = torch.arange(1, 10)[None, :, None].expand(BATCH, -1, 2).float()
    return {"flattened_patches": torch.cat([places, torch.randn(BATCH, 9, 48)], -1)}


def _build(model: Any, config: Any, batch: Callable[[], Batch], **settings: Any) -> Callable[[], Made]:
    return lambda: (model(config(**settings)), batch())


_ENCODERS: dict[str, Callable[[], Made]] = {
    "BERT": _build(t.BertForSequenceClassification, t.BertConfig, text, num_labels=10, **_TEXT),
    "DistilBERT": _build(
        t.DistilBertForSequenceClassification, t.DistilBertConfig, text,
        num_labels=10, vocab_size=100, dim=64, n_layers=2, n_heads=4, hidden_dim=128,
    ),
    "RoBERTa": _build(t.RobertaForSequenceClassification, t.RobertaConfig, text, num_labels=10, **_TEXT),
    "ALBERT": _build(
        t.AlbertForSequenceClassification, t.AlbertConfig, text, num_labels=10, embedding_size=32, **_TEXT
    ),
    "DeBERTa-v2": _build(
        t.DebertaV2ForSequenceClassification, t.DebertaV2Config, text,
        num_labels=10, relative_attention=True, position_buckets=8, pos_att_type=["c2p", "p2c"], **_TEXT,
    ),
    "ELECTRA": _build(t.ElectraForMaskedLM, t.ElectraConfig, text, embedding_size=32, **_TEXT),
    "MPNet": _build(t.MPNetForMaskedLM, t.MPNetConfig, text, **_TEXT),
    "XLM-R": _build(t.XLMRobertaForTokenClassification, t.XLMRobertaConfig, text, num_labels=10, **_TEXT),
    "ModernBERT": _build(
        t.ModernBertForMaskedLM, t.ModernBertConfig, text,
        pad_token_id=0, cls_token_id=1, sep_token_id=2, attn_implementation="eager", **_TEXT,
    ),
    "MobileBERT": _build(
        t.MobileBertForSequenceClassification, t.MobileBertConfig, text,
        num_labels=10, embedding_size=32, intra_bottleneck_size=32, **_TEXT,
    ),
    "SqueezeBERT": _build(
        t.SqueezeBertForSequenceClassification, t.SqueezeBertConfig, text, num_labels=10, embedding_size=64, **_TEXT
    ),
    "BigBird": _build(t.BigBirdForMaskedLM, t.BigBirdConfig, text, attention_type="original_full", **_TEXT),
    "Funnel": _build(
        t.FunnelForSequenceClassification, t.FunnelConfig, text,
        vocab_size=100, d_model=64, n_head=4, d_head=16, d_inner=128, block_sizes=[1, 1], num_labels=10,
    ),
    "T5 encoder": _build(t.T5EncoderModel, t.T5Config, text, **_T5),
}  # fmt: skip

_GENERATORS: dict[str, Callable[[], Made]] = {
    "T5": _build(t.T5ForConditionalGeneration, t.T5Config, _two_texts, **_T5),
    "SwitchTransformers": _build(
        t.SwitchTransformersForConditionalGeneration, t.SwitchTransformersConfig, _two_texts,
        num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **_T5,
    ),
    "BART": _build(t.BartForConditionalGeneration, t.BartConfig, _two_texts, **_PAIR),
    "Marian": _build(
        t.MarianMTModel, t.MarianConfig, _two_texts, pad_token_id=0, decoder_start_token_id=0, **_PAIR
    ),
    "GPT-2": _build(
        t.GPT2LMHeadModel, t.GPT2Config, text, vocab_size=100, n_embd=64, n_layer=1, n_head=4, use_cache=False
    ),
    "OPT": _build(
        t.OPTForCausalLM, t.OPTConfig, text,
        vocab_size=100, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, ffn_dim=128, word_embed_proj_dim=64,
        use_cache=False,
    ),
    "BLOOM": _build(t.BloomForCausalLM, t.BloomConfig, text, vocab_size=100, hidden_size=64, n_layer=2, n_head=4,
                    use_cache=False),
    "GPT-NeoX": _build(t.GPTNeoXForCausalLM, t.GPTNeoXConfig, text, **_DECODER),
    "GPT-J": _build(t.GPTJForCausalLM, t.GPTJConfig, text, vocab_size=100, n_embd=64, n_layer=2, n_head=4, rotary_dim=8,
                    use_cache=False),
    "Falcon": _build(t.FalconForCausalLM, t.FalconConfig, text, **_DECODER),
    "Llama": _build(t.LlamaForCausalLM, t.LlamaConfig, text, **_DECODER),
    "Mistral": _build(t.MistralForCausalLM, t.MistralConfig, text, **_GROUPED),
    "Qwen2": _build(t.Qwen2ForCausalLM, t.Qwen2Config, text, **_GROUPED),
    "Qwen3": _build(t.Qwen3ForCausalLM, t.Qwen3Config, text, head_dim=16, **_GROUPED),
    "Phi": _build(t.PhiForCausalLM, t.PhiConfig, text, **_DECODER),
    "Phi-3": _build(t.Phi3ForCausalLM, t.Phi3Config, text, pad_token_id=0, **_GROUPED),
    "Gemma": _build(t.GemmaForCausalLM, t.GemmaConfig, text, head_dim=16, pad_token_id=0, **_GROUPED),
    "StableLM": _build(t.StableLmForCausalLM, t.StableLmConfig, text, **_GROUPED),
    "OLMo": _build(t.OlmoForCausalLM, t.OlmoConfig, text, pad_token_id=0, **_GROUPED),
    "Mixtral": _build(
        t.MixtralForCausalLM, t.MixtralConfig, text, num_local_experts=4, num_experts_per_tok=2, **_GROUPED
    ),
    "GraniteMoe": _build(
        t.GraniteMoeForCausalLM, t.GraniteMoeConfig, text, num_local_experts=4, num_experts_per_tok=2, **_GROUPED
    ),
    "Mamba": _build(t.MambaForCausalLM, t.MambaConfig, _tokens, vocab_size=100, hidden_size=64, state_size=4,
                    num_hidden_layers=2, use_cache=False),
}  # fmt: skip

_TRANSFORMERS: dict[str, Callable[[], Made]] = {
    "ViT": _build(t.ViTForImageClassification, t.ViTConfig, image, **_PATCHES),
    "DeiT": _build(t.DeiTForImageClassification, t.DeiTConfig, image, **_PATCHES),
    "BEiT": _build(t.BeitForImageClassification, t.BeitConfig, image, layer_scale_init_value=1.0, **_PATCHES),
    "DINOv2": _build(t.Dinov2ForImageClassification, t.Dinov2Config, image, mlp_ratio=2, **_PATCHES),
    "Swin": _build(
        t.SwinForImageClassification, t.SwinConfig, image,
        num_labels=10, image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4,
    ),
    "SegFormer": _build(
        t.SegformerForSemanticSegmentation, t.SegformerConfig, lambda: image(64),
        num_labels=10, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
    ),
    "MobileViT": _build(
        t.MobileViTForImageClassification, t.MobileViTConfig, lambda: image(64),
        num_labels=10, image_size=64, hidden_sizes=[32, 48, 64], neck_hidden_sizes=[16, 16, 32, 32, 48, 64, 64],
    ),
    "LeViT": _build(
        t.LevitForImageClassification, t.LevitConfig, lambda: image(64),
        num_labels=10, image_size=64, hidden_sizes=[32, 48, 64], num_attention_heads=[2, 3, 4], depths=[1, 1, 1],
        key_dim=[16, 16, 16],
    ),
    "PoolFormer": _build(
        t.PoolFormerForImageClassification, t.PoolFormerConfig, lambda: image(64),
        num_labels=10, hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1], layer_scale_init_value=1.0,
    ),
    "CLIP vision": _build(t.CLIPVisionModelWithProjection, t.CLIPVisionConfig, image, projection_dim=32, **{
        key: value for key, value in _PATCHES.items() if key != "num_labels"
    }),
    "SigLIP vision": _build(t.SiglipVisionModel, t.SiglipVisionConfig, image, **_PATCHES),
    "YOLOS": _build(
        t.YolosForObjectDetection, t.YolosConfig, image,
        **{**_PATCHES, "image_size": [32, 32]}, num_detection_tokens=5,
    ),
    "DETR": _build(
        t.DetrForObjectDetection, t.DetrConfig, lambda: {**image(64), "pixel_mask": torch.ones(BATCH, 64, 64).long()},
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, num_labels=10, num_queries=5,
        backbone_config=t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic",
                                       out_features=["stage2"]),
        d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=128, decoder_ffn_dim=128,
    ),
    "Pix2Struct vision": _build(
        t.Pix2StructVisionModel, t.Pix2StructVisionConfig, _patches,
        hidden_size=64, patch_embed_hidden_size=48, d_ff=128, d_kv=16, num_hidden_layers=2, num_attention_heads=4,
        patch_size=4, seq_len=16,
    ),
    "Depth Anything": _build(
        t.DepthAnythingForDepthEstimation, t.DepthAnythingConfig, image,
        backbone_config=t.Dinov2Config(
            image_size=32, patch_size=8, mlp_ratio=2, out_features=["stage1", "stage2"], reshape_hidden_states=False,
            **_SIZES,
        ),
        patch_size=8, reassemble_hidden_size=64, neck_hidden_sizes=[32, 32], reassemble_factors=[2, 1],
        fusion_hidden_size=32, head_hidden_size=16,
    ),
}  # fmt: skip

_CONVOLUTIONAL: dict[str, Callable[[], Made]] = {
    "ResNet": _build(
        t.ResNetForImageClassification, t.ResNetConfig, image,
        num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], layer_type="basic",
    ),
    "RegNet": _build(
        t.RegNetForImageClassification, t.RegNetConfig, image,
        num_labels=10, embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], groups_width=16,
    ),
    "ConvNeXt": _build(
        t.ConvNextForImageClassification, t.ConvNextConfig, image,
        num_labels=10, hidden_sizes=[32, 64], depths=[1, 1], num_stages=2, layer_scale_init_value=1.0,
    ),
    "ConvNeXtV2": _build(
        t.ConvNextV2ForImageClassification, t.ConvNextV2Config, image,
        num_labels=10, hidden_sizes=[32, 64], depths=[1, 1], num_stages=2,
    ),
    "MobileNetV1": _build(
        t.MobileNetV1ForImageClassification, t.MobileNetV1Config, lambda: image(64), num_labels=10, depth_multiplier=0.5
    ),
    "MobileNetV2": _build(
        t.MobileNetV2ForImageClassification, t.MobileNetV2Config, lambda: image(64), num_labels=10,
        depth_multiplier=0.5,
    ),
    "EfficientNet": _build(
        t.EfficientNetForImageClassification, t.EfficientNetConfig, lambda: image(64),
        num_labels=10, image_size=64, width_coefficient=0.5, depth_coefficient=0.5, hidden_dim=640,
    ),
}  # fmt: skip


def _whisper_encoder() -> Made:
    config = t.WhisperConfig(
        **_PAIR, max_source_positions=50, num_mel_bins=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    return t.WhisperModel(config).encoder, {"input_features": torch.randn(BATCH, 16, 100)}


def _sound() -> Batch:
    return {"input_values": torch.randn(BATCH, 400)}


def _series() -> Batch:
    return {"past_values": torch.randn(BATCH, 32, 3)}


_SERIES: dict[str, Callable[[], Made]] = {
    "PatchTST": _build(
        t.PatchTSTForClassification, t.PatchTSTConfig, _series,
        num_input_channels=3, context_length=32, patch_length=4, patch_stride=4, num_targets=10, d_model=32,
        num_attention_heads=4, ffn_dim=64, num_hidden_layers=2,
    ),
}  # fmt: skip

_SOUND: dict[str, Callable[[], Made]] = {
    "Wav2Vec2": _build(t.Wav2Vec2ForCTC, t.Wav2Vec2Config, _sound, **_SPEECH),
    "Hubert": _build(t.HubertForCTC, t.HubertConfig, _sound, **_SPEECH),
    "Whisper encoder": _whisper_encoder,
}

ARCHITECTURES: dict[str, Callable[[], Made]] = {
    **_ENCODERS,
    **_GENERATORS,
    **_TRANSFORMERS,
    **_CONVOLUTIONAL,
    **_SOUND,
    **_SERIES,
}
