"""Speech, audio and sequence models of transformers, small: random weights, all parts in place, nothing downloaded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor
from transformers.models.moonshine_streaming.configuration_moonshine_streaming import MoonshineStreamingEncoderConfig
from transformers.models.moonshine_streaming.modeling_moonshine_streaming import MoonshineStreamingEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

Inputs = dict[str, Any]


def floats(outputs: Tensor | dict[str, Any]) -> list[Tensor]:
    """What of a model's outputs can have a gradient."""
    values = [outputs] if isinstance(outputs, Tensor) else outputs.values()
    return [value for value in values if isinstance(value, Tensor) and value.is_floating_point()]


@dataclass(frozen=True)
class Example:
    build: Callable[[], hf.PreTrainedModel]
    inputs: Callable[[], Inputs]
    run: Callable[..., list[Tensor]] = lambda model, **inputs: floats(model(**inputs))
    """The model's outputs, or where no gradient passes through those, what comes before and after it."""
    by_function: bool = False
    """Passes the weights of its Conv1d modules to torch.nn.functional.conv1d: convert is not enough, patch_torch is."""


def _wave(*shape: int) -> Callable[[], Inputs]:
    return lambda: {"input_values": torch.randn(shape)}


def _tokens() -> Inputs:
    return {"input_ids": torch.randint(1, 40, (2, 24))}


_LANGUAGE = {"vocab_size": 40, "hidden_size": 16, "state_size": 8, "num_hidden_layers": 2}
_SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "conv_dim": (16, 16, 24), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_length": 2, "layerdrop": 0.0,
}  # fmt: skip


def _speech(model: type[hf.PreTrainedModel], **options: Any) -> Callable[[], hf.PreTrainedModel]:
    def build() -> hf.PreTrainedModel:
        built = model(model.config_class(**_SPEECH, **options))
        # In training it sets requires_grad of its input, which fails where the test has set it.
        built.feature_extractor._requires_grad = False
        return built

    return build


def _whisper() -> hf.PreTrainedModel:
    return WhisperEncoder(
        hf.WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48, num_mel_bins=16,
            max_source_positions=50,
        )
    )  # fmt: skip


def _encodec() -> hf.PreTrainedModel:
    model = hf.EncodecModel(
        hf.EncodecConfig(
            num_filters=4, upsampling_ratios=[4, 2], hidden_size=16, codebook_size=32, num_lstm_layers=1,
            target_bandwidths=[24.0],
        )
    )  # fmt: skip
    with torch.no_grad():
        codes = model.encoder(torch.randn(1, 1, 256))[0].T  # else every position is nearest to the same code
    for layer in model.quantizer.layers:
        layer.codebook.embed.copy_(codes)
    return model


def _dac() -> hf.PreTrainedModel:
    return hf.DacModel(
        hf.DacConfig(
            encoder_hidden_size=8, downsampling_ratios=[2, 4], decoder_hidden_size=32, n_codebooks=2, codebook_size=32,
            codebook_dim=4,
        )
    )  # fmt: skip


def _mimi() -> hf.PreTrainedModel:
    model = hf.MimiModel(
        hf.MimiConfig(
            num_filters=4, upsampling_ratios=[4, 2], hidden_size=16, codebook_size=32, codebook_dim=8,
            vector_quantization_hidden_dimension=8, num_quantizers=3, upsample_groups=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, intermediate_size=32, sampling_rate=1600,
        )
    )  # fmt: skip
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    return model


def _vits() -> hf.PreTrainedModel:
    return hf.VitsModel(
        hf.VitsConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, flow_size=16,
            spectrogram_bins=33, num_speakers=3, speaker_embedding_size=8, upsample_initial_channel=32,
            upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3, 5],
            resblock_dilation_sizes=[[1, 3], [1, 3]], prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2,
            posterior_encoder_num_wavenet_layers=2, duration_predictor_num_flows=2, depth_separable_num_layers=2,
            noise_scale=0.0, layerdrop=0.0,
        )
    )  # fmt: skip


def _hifigan() -> hf.PreTrainedModel:
    return hf.SpeechT5HifiGan(
        hf.SpeechT5HifiGanConfig(
            model_in_dim=16, upsample_initial_channel=32, upsample_rates=[4, 2], upsample_kernel_sizes=[8, 4]
        )
    )


def _mamba() -> hf.PreTrainedModel:
    return hf.MambaForCausalLM(hf.MambaConfig(**_LANGUAGE))


def _mamba2() -> hf.PreTrainedModel:
    return hf.Mamba2ForCausalLM(hf.Mamba2Config(**_LANGUAGE, num_heads=4, head_dim=8, n_groups=2, chunk_size=8))


def _parakeet() -> hf.PreTrainedModel:
    encoder = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "conv_kernel_size": 5, "subsampling_factor": 4, "subsampling_conv_channels": 8, "num_mel_bins": 16,
        "layerdrop": 0.0,
    }  # fmt: skip
    return hf.ParakeetForCTC(hf.ParakeetCTCConfig(vocab_size=40, pad_token_id=39, encoder_config=encoder))


def _moonshine() -> hf.PreTrainedModel:
    return MoonshineStreamingEncoder(
        MoonshineStreamingEncoderConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            sliding_windows=((4, 1), (4, 0)),
        )
    )  # fmt: skip


def _run_encodec(model: hf.PreTrainedModel, input_values: Tensor) -> list[Tensor]:
    latents = model.encoder(input_values)
    return [latents, model.decoder(latents)]


def _run_dac(model: hf.PreTrainedModel, input_values: Tensor) -> list[Tensor]:
    latents = model.encoder(input_values)
    projected = [layer.out_proj(layer.in_proj(latents)) for layer in model.quantizer.quantizers]
    return [latents, *projected, model.decoder(latents)]


def _run_mimi(model: hf.PreTrainedModel, input_values: Tensor) -> list[Tensor]:
    latents = model.encoder(input_values).latents
    quantizer = model.quantizer
    layers = [quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer]
    projected = [layer.output_proj(layer.input_proj(latents)) for layer in layers]
    return [latents, *projected, model.decoder(latents).audio_values]


def _run_vits(model: hf.PreTrainedModel, input_ids: Tensor, spectrogram: Tensor, durations: Tensor) -> list[Tensor]:
    """The synthesis, and the parts that only training uses."""
    speaker = model.embed_speaker(torch.tensor([1, 2]))[..., None]
    _, *posterior = model.posterior_encoder(spectrogram, torch.ones_like(spectrogram[:, :1]), speaker)
    mask = torch.ones_like(durations)
    hidden = model.text_encoder(input_ids, mask.transpose(1, 2)).last_hidden_state.transpose(1, 2)
    likelihood = model.duration_predictor(hidden, mask, speaker, durations=durations)
    return [*floats(model(input_ids, speaker_id=1)), *posterior, likelihood]


EXAMPLES: dict[str, Example] = {
    "wav2vec2": Example(_speech(hf.Wav2Vec2Model, add_adapter=True), _wave(2, 1200)),
    "wav2vec2_large": Example(
        _speech(hf.Wav2Vec2Model, do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True), _wave(2, 1200)
    ),
    "hubert": Example(_speech(hf.HubertModel), _wave(2, 1200)),
    "wavlm": Example(_speech(hf.WavLMModel), _wave(2, 1200)),
    "conformer": Example(_speech(hf.Wav2Vec2ConformerModel, conv_depthwise_kernel_size=7), _wave(2, 1200)),
    "parakeet": Example(_parakeet, lambda: {"input_features": torch.randn(2, 60, 16)}),  # its head derives from Conv1d
    "moonshine": Example(_moonshine, _wave(2, 1600)),  # and so do the causal convolutions here
    "whisper": Example(_whisper, lambda: {"input_features": torch.randn(2, 16, 100)}),
    "encodec": Example(_encodec, _wave(2, 1, 400), _run_encodec),
    "dac": Example(_dac, _wave(2, 1, 400), _run_dac),
    "mimi": Example(_mimi, _wave(2, 1, 400), _run_mimi),
    "vits": Example(
        _vits, lambda: _tokens() | {"spectrogram": torch.randn(2, 33, 20), "durations": torch.rand(2, 1, 24) + 2},
        _run_vits,
    ),
    "hifigan": Example(_hifigan, lambda: {"spectrogram": torch.randn(2, 30, 16)}),
    "mamba": Example(_mamba, _tokens, by_function=True),
    "mamba2": Example(_mamba2, _tokens, by_function=True),
}  # fmt: skip
