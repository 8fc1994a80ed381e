"""Whether somebody speaks: silero-vad in all its ONNX files, some with weights in the branches of an If."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from speech import SENTENCES, spoken
from speech import WHEEL as VOICE
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "silero-vad==6.2.3"
FOLDER = "silero_vad/data/"


#: Standard deviations of the noise under the voice.
NOISES = (0.001, 0.003, 0.01)


def frames(
    seed: int, sentences: Sequence[str], rate: int, noise: float = 0.003
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Frames (count, context + frame) with the end of the one before, and whether most of each is speech."""
    audio, speaks = spoken(seed, tuple(sentences), rate, noise)
    size, context = (512, 64) if rate == 16_000 else (256, 32)
    count = len(audio) // size
    audio = np.concatenate([np.zeros(context, np.float32), audio[: count * size]])
    cut = np.stack([audio[i * size : (i + 1) * size + context] for i in range(count)])
    return cut, speaks[: count * size].reshape(count, size).mean(1) > 0.5


def stream(run: Run, cut: NDArray[np.float32], rate: int | None) -> tuple[NDArray[np.float32], list[Batch]]:
    """The probability of speech in each frame, the state carried on, and what the network was given."""
    state = np.zeros((2, 1, 128), np.float32)
    found, given = [], []
    for frame in cut:
        batch: Batch = {"input": frame[None], "state": state}
        if rate is not None:
            batch = {**batch, "sr": np.array(rate, np.int64)}
        given.append(batch)
        probability, state = run(batch)[:2]
        found.append(probability.ravel()[0])
    return np.array(found), given


def accuracy(found: Callable[[NDArray[np.float32]], NDArray[np.float32]], rate: int) -> float:
    """Frames that are said right, in percent, over sentences that calibration has not seen, twice in each noise."""
    right = []
    for seed in (9, 10):
        for noise in NOISES:
            cut, speaks = frames(seed, SENTENCES[4:], rate, noise)
            right.append((found(cut) > 0.5) == speaks)
    return 100 * float(np.mean(np.concatenate(right)))


def session_run(file: str) -> Run:
    """The shipped file in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(shipped(WHEEL, FOLDER + file)))
    return lambda batch: session.run(None, dict(batch))


@cache
def recorded(file: str, seed: int, first: int, rate: int, said: bool, noise: float = 0.003) -> tuple[Batch, ...]:
    """What a stream of the sentences from `first` to the fourth gives the network, its own states included."""
    cut, _ = frames(seed, SENTENCES[first:4], rate, noise)
    _, given = stream(session_run(file), cut, rate if said else None)
    return tuple(given)


def streaming(file: str, name: str, *, said: bool, rate: int = 16_000, beyond: str = "") -> ZooNetwork:
    """A file that takes one frame and its state; `said`: it is told the sample rate."""

    def figure(run: Run) -> float:
        return accuracy(lambda cut: stream(run, cut, rate if said else None)[0], rate)

    return ZooNetwork(
        name=name,
        wheel=WHEEL,
        file=FOLDER + file,
        task=f"frames of speech and pause at {rate // 1000} kHz, 4 spoken sentences, 6 times in noise",
        model=lambda: shipped(WHEEL, FOLDER + file),
        data=lambda: [batch for noise in NOISES for batch in recorded(file, 0, 0, rate, said, noise)[::8]],
        held_out=lambda: recorded(file, 1, 2, rate, said)[60],
        figure=figure,
        needs=(VOICE,),
        unseen=lambda: recorded(file, 1, 2, rate, said)[::3],
        beyond=beyond,
    )


def sequence() -> ZooNetwork:
    """The file that takes all frames of a stream at once."""
    file = "silero_vad_16k_sequence.onnx"

    def zeros() -> Batch:
        return dict.fromkeys(("h", "c"), np.zeros((1, 1, 128), np.float32))

    def batch(seed: int, sentences: Sequence[str]) -> Batch:
        return {**zeros(), "input": frames(seed, sentences, 16_000)[0]}

    def figure(run: Run) -> float:
        return accuracy(lambda cut: run({**zeros(), "input": cut})[0].ravel(), 16_000)

    return ZooNetwork(
        name="silero-vad, sequence",
        wheel=WHEEL,
        file=FOLDER + file,
        task="frames of speech and pause at 16 kHz, 4 spoken sentences, 6 times in noise",
        model=lambda: shipped(WHEEL, FOLDER + file),
        data=lambda: [batch(0, SENTENCES[0:2]), batch(1, SENTENCES[2:4])],
        held_out=lambda: batch(2, SENTENCES[2:4]),
        figure=figure,
        needs=(VOICE,),
    )


NETWORKS = (
    streaming("silero_vad.onnx", "silero-vad", said=True),
    streaming("silero_vad.onnx", "silero-vad, 8 kHz", said=True, rate=8_000),
    streaming("silero_vad_16k_op15.onnx", "silero-vad, op15", said=True),
    streaming("silero_vad_op18_ifless.onnx", "silero-vad, op18", said=True),
    streaming("silero_vad_half.onnx", "silero-vad, half", said=False),
    streaming("silero_vad_openvino_16k.onnx", "silero-vad, OpenVINO", said=False),
    sequence(),
)
