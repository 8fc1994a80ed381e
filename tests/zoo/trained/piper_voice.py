"""Speech from phonemes: a voice for Piper (VITS), without its noise."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from speech import FILE, SENTENCES, WHEEL, voice_batch
from zoo_network import Run, ZooNetwork, shipped


def spectrum(audio: NDArray[np.float32]) -> NDArray[np.float64]:
    """Loudness (frames, 80) in dB in bands of a mel scale, at least 60 dB below the loudest."""
    window = np.hanning(1024)
    frames = np.lib.stride_tricks.sliding_window_view(audio.ravel(), 1024)[::256] * window
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = 700 * (np.exp(np.linspace(0, np.log(1 + 8000 / 700), 82)) - 1) * 1024 / 22_050
    bins = np.arange(513)
    bands = np.stack(
        [
            np.interp(bins, [edges[i], edges[i + 1], edges[i + 2]], [0, 1, 0], left=0, right=0)
            + (bins == int(edges[i + 1]))
            for i in range(80)
        ]
    )
    loud = 10 * np.log10(power @ bands.T + 1e-12)
    return np.maximum(loud, loud.max() - 60)


@cache
def expected(sentence: str) -> NDArray[np.float64]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(shipped(WHEEL, FILE)))
    return spectrum(session.run(None, dict(voice_batch(sentence)))[0])


def figure(run: Run) -> float:
    """Correlation of mel spectra with those of the float voice, in percent; frames too many or too few count as 0."""
    shares = []
    for sentence in SENTENCES[4:]:
        wanted, found = expected(sentence), spectrum(run(voice_batch(sentence))[0])
        length = min(len(wanted), len(found))
        correlation = np.corrcoef(wanted[:length].ravel(), found[:length].ravel())[0, 1]
        shares.append(correlation * length / max(len(wanted), len(found)))
    return 100 * float(np.mean(shares))


NETWORKS = (
    ZooNetwork(
        name="Piper voice joe",
        wheel=WHEEL,
        file=FILE,
        task="mel spectrum of 4 sentences, correlation with that of the float voice",
        model=lambda: shipped(WHEEL, FILE),
        data=lambda: [voice_batch(sentence) for sentence in SENTENCES[:4]],
        held_out=lambda: voice_batch(SENTENCES[4]),
        figure=figure,
        settings={"overrides": {"/dec/*": "uint16"}},  # the decoder makes waves, which rounding to 8 bits roughens
    ),
)
