"""What is written, and where: ddddocr's recognizer (convolutions, two LSTMs) and detector (a YOLO head)."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from zoo_network import Batch, Run, ZooNetwork, shipped

WHEEL = "ddddocr==1.6.1"
SIGNS = "ABCDEFGHJKLMNPRSTUVWXYabcdefghkmnprstuvwxyz23456789"
SIDE = 416


def words(seed: int, count: int) -> list[str]:
    """Random codes as captchas have them."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(SIGNS), rng.integers(4, 7))) for _ in range(count)]


def rendered(word: str, seed: int) -> Batch:
    """A code, each sign turned and shifted a little, on a noisy ground: float32 (1, 1, 64, width), 0 to 1."""
    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(44)
    picture = Image.new("L", (40 * len(word) + 20, 64), 255)
    for index, sign in enumerate(word):
        tile = Image.new("L", (56, 64), 0)
        ImageDraw.Draw(tile).text((10, 4), sign, 255, font)
        tile = tile.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
        shade = int(rng.integers(0, 90))
        picture.paste(shade, (8 + 40 * index, int(rng.integers(-4, 5))), tile)
    pixels = np.asarray(picture, np.float32) + rng.normal(0, 6, (64, picture.width))
    return {"input1": (np.clip(pixels, 0, 255) / 255).astype(np.float32)[None, None]}


@cache
def charset() -> list[str]:
    """The signs by index; the first is the blank."""
    names = runpy.run_path(str(shipped(WHEEL, "ddddocr/charsets.py")))
    return list(names["CHARSET_BETA"])


def read(logits: NDArray[np.float32]) -> str:
    """The best sign at every step, repetitions and blanks taken out."""
    best = logits.reshape(-1, logits.shape[-1]).argmax(1)
    kept = [index for index, before in zip(best, [-1, *best[:-1]], strict=True) if index != before and index != 0]
    return "".join(charset()[index] for index in kept)


def distance(first: str, second: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def read_right(run: Run) -> float:
    """Signs that are read right, large and small alike, in percent."""
    expected = words(1, 60)
    found = [read(run(rendered(word, seed))[0]) for seed, word in enumerate(expected)]
    wrong = sum(distance(a.lower(), b.lower()) for a, b in zip(expected, found, strict=True))
    return 100 * (1 - wrong / sum(map(len, expected)))


@cache
def scenes(seed: int, count: int) -> tuple[Batch, Sequence[NDArray[np.float64]]]:
    """Pictures with a few signs, (count, 3, 416, 416) as the detector wants them, and the boxes of each."""
    rng = np.random.default_rng(seed)
    pictures, boxes = [], []
    for _ in range(count):
        ground = rng.integers(0, 256, (13, 13, 3), np.uint8)
        picture = Image.fromarray(ground).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        draw, found = ImageDraw.Draw(picture), []
        for cell in rng.choice(9, 4, replace=False):
            corner = np.array([cell % 3, cell // 3]) * 130 + rng.integers(10, 40, 2)
            font = ImageFont.load_default(int(rng.integers(60, 80)))
            sign, colour = str(rng.choice(list(SIGNS))), tuple(int(value) for value in rng.integers(0, 256, 3))
            at = (int(corner[0]), int(corner[1]))
            draw.text(at, sign, colour, font, stroke_width=2, stroke_fill=(0, 0, 0))
            found.append(draw.textbbox(at, sign, font, stroke_width=2))
        pictures.append(np.asarray(picture, np.float32).transpose(2, 0, 1))
        boxes.append(np.array(found, np.float64))
    return {"images": np.stack(pictures)}, boxes


def detections(raw: NDArray[np.float32]) -> NDArray[np.float64]:
    """Boxes (count, 4) as corners, of one picture: sizes from grids, then the best of those that overlap."""
    cells, strides = [], []
    for stride in (8, 16, 32):
        side = SIDE // stride
        columns, rows = np.meshgrid(np.arange(side), np.arange(side))
        cells.append(np.stack([columns, rows], 2).reshape(-1, 2))
        strides.append(np.full((side * side, 1), stride))
    stride = np.concatenate(strides)
    middle = (raw[:, :2] + np.concatenate(cells)) * stride
    size = np.exp(raw[:, 2:4].astype(np.float64)) * stride
    score = raw[:, 4] * raw[:, 5]
    corners = np.concatenate([middle - size / 2, middle + size / 2], 1)
    kept: list[NDArray[np.float64]] = []
    for index in np.argsort(-score):
        if score[index] < 0.3:
            break
        if all(overlap(corners[index], other) < 0.45 for other in kept):
            kept.append(corners[index])
    return np.array(kept).reshape(-1, 4)


def overlap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared)


def found_right(run: Run) -> float:
    """F-measure of boxes that overlap by half, in percent."""
    batch, boxes = scenes(1, 24)
    matched = found = expected = 0
    for index, wanted in enumerate(boxes):
        boxes_found = detections(run({"images": batch["images"][index : index + 1]})[0][0])
        found, expected = found + len(boxes_found), expected + len(wanted)
        matched += sum(any(overlap(box, other) > 0.5 for other in boxes_found) for box in wanted)
    return 100 * 2 * matched / (found + expected)


NETWORKS = (
    ZooNetwork(
        name="ddddocr, recognizer",
        wheel=WHEEL,
        file="ddddocr/common.onnx",
        task="signs of 60 rendered codes",
        model=lambda: shipped(WHEEL, "ddddocr/common.onnx"),
        data=lambda: [rendered(word, 100 + seed) for seed, word in enumerate(words(0, 24))],
        held_out=lambda: rendered(words(2, 1)[0], 200),
        figure=read_right,
        unseen=lambda: [rendered(word, 500 + seed) for seed, word in enumerate(words(2, 40))],
    ),
    ZooNetwork(
        name="ddddocr, detector",
        wheel=WHEEL,
        file="ddddocr/common_det.onnx",
        task="boxes of signs in 24 drawn pictures, F-measure at half overlap",
        model=lambda: shipped(WHEEL, "ddddocr/common_det.onnx"),
        data=lambda: [{"images": scenes(0, 12)[0]["images"][i : i + 1]} for i in range(12)],
        held_out=lambda: {"images": scenes(2, 1)[0]["images"]},
        figure=found_right,
        unseen=lambda: [{"images": image[None]} for image in scenes(2, 12)[0]["images"]],
    ),
)
