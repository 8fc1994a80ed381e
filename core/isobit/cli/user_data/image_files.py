"""Images as model inputs, with preprocessing that is derived from the input and always printed in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.cli.user_data.data_files import DataFiles
from isobit.cli.user_data.file_batches import Arrays, FileBatches, full_batches
from isobit.cli.user_data.image_options import ImageOptions
from isobit.errors import DataError, PluginError
from isobit.graph.graph import Graph, Shape

_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True)
class Preprocessing:
    """From a file to an array: decode, convert, resize, scale, normalise, lay out."""

    height: int
    width: int
    channels: str
    layout: str
    dtype: str
    scale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, path: Path) -> NDArray[Any]:
        """The image as one sample, without the batch axis."""
        pixels = _decode(path, "L" if self.channels == "gray" else "RGB", (self.width, self.height))
        pixels = pixels.reshape(self.height, self.width, -1)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        if self.dtype != "uint8":
            pixels = self._normalise(pixels.astype(np.float32))
        if self.layout == "nchw":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels)

    def _normalise(self, values: NDArray[np.float32]) -> NDArray[Any]:
        if self.scale is not None:
            values *= np.float32(self.scale)
        if self.mean is not None:
            values -= np.array(self.mean, np.float32)
        if self.std is not None:
            values /= np.array(self.std, np.float32)
        return np.asarray(values, self.dtype)

    def __str__(self) -> str:
        steps = [f"resized to {self.height}x{self.width} (bilinear, not cropped)", self.channels]
        if self.scale is not None:
            steps.append("times 1/255" if self.scale == 1 / 255 else f"times {self.scale:g}")
        if self.mean is not None:
            steps.append(f"minus mean {_numbers(self.mean)}")
        if self.std is not None:
            steps.append(f"divided by std {_numbers(self.std)}")
        return ", ".join([*steps, f"laid out {self.layout} in {self.dtype}"])


def load_images(
    path: Path, files: Sequence[Path], graph: Graph, options: ImageOptions, batch_size: int, samples: int | None
) -> DataFiles:
    """One image, or a folder of images in order of their names, as data for a model of one input."""
    if len(graph.inputs) != 1:
        raise DataError(f"{path}: images serve a model of one input, and this one has: {', '.join(graph.inputs)}")
    _require_pillow()
    preprocessing = plan_preprocessing(graph, options)
    name = graph.inputs[0]

    def read(file: Path) -> Arrays:
        return {name: preprocessing(file)}

    used, size, notes = full_batches(files[:samples], batch_size, graph)
    batches = FileBatches(used, read, size)
    notes.insert(0, f"{path}: {len(used)} image(s), {preprocessing}")
    return DataFiles(path, batches, notes=notes, where=batches.where)


def plan_preprocessing(graph: Graph, options: ImageOptions) -> Preprocessing:
    """What is done with each image: what was asked, else what the input's shape and type say. Raises DataError."""
    name = graph.inputs[0]
    info = graph.tensors[name]
    shape = info.shape
    if shape is None or len(shape) != 4:
        raise DataError(
            f"input {name!r} has shape {_text(shape)}: images need an input of 4 axes (batch, channels and size)"
        )
    layout = options.layout or _layout(name, shape)
    axis, spatial = (1, shape[2:]) if layout == "nchw" else (3, shape[1:3])
    channels = _channels(name, shape[axis], options.channels)
    height, width = _size(name, spatial, options.size)
    if info.dtype == "uint8":
        if options.scale is not None or options.mean is not None or options.std is not None:
            raise DataError(f"input {name!r} takes uint8 pixels as they are: leave out --scale, --mean and --std")
        return Preprocessing(height, width, channels, layout, "uint8", None, None, None)
    if info.dtype not in ("float32", "float16", "float64"):
        raise DataError(
            f"input {name!r} takes {info.dtype}: images serve inputs of uint8 or float; pass arrays instead"
        )
    for option, values in (("--mean", options.mean), ("--std", options.std)):
        if values is not None and len(values) not in (1, _CHANNELS[channels]):
            raise DataError(f"{option} has {len(values)} numbers for {_CHANNELS[channels]} channel(s) ({channels})")
    scale = 1 / 255 if options.scale is None else options.scale
    return Preprocessing(height, width, channels, layout, info.dtype, scale, options.mean, options.std)


def _layout(name: str, shape: Shape) -> str:
    if shape[1] in (1, 3):
        return "nchw"
    if shape[3] in (1, 3):
        return "nhwc"
    raise DataError(
        f"input {name!r} has shape {_text(shape)}: neither axis 1 nor axis 3 holds 1 or 3 channels; say --layout "
        "and --channels, or pass arrays"
    )


def _channels(name: str, count: Any, option: str | None) -> str:
    if isinstance(count, int):
        if count not in (1, 3):
            raise DataError(f"input {name!r} takes {count} channels: images have 1 or 3; pass arrays instead")
        if option is not None and _CHANNELS[option] != count:
            raise DataError(f"--channels {option} is {_CHANNELS[option]} channel(s), and input {name!r} takes {count}")
        return option or ("gray" if count == 1 else "rgb")
    if option is None:
        raise DataError(f"input {name!r} does not say its number of channels: say --channels rgb, bgr or gray")
    return option


def _size(name: str, spatial: Shape, option: tuple[int, int] | None) -> tuple[int, int]:
    fixed = [size if isinstance(size, int) else None for size in spatial]
    if option is None:
        if None in fixed:
            raise DataError(f"input {name!r} takes images of any size: say --image-size HEIGHTxWIDTH")
        return fixed[0] or 0, fixed[1] or 0
    if any(fixed_size is not None and fixed_size != asked for fixed_size, asked in zip(fixed, option, strict=True)):
        own_text = "x".join("?" if size is None else str(size) for size in fixed)
        raise DataError(f"--image-size {option[0]}x{option[1]}: input {name!r} takes {own_text}")
    return option


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise PluginError('images need Pillow: pip install "isobit[images]"') from error


def _decode(path: Path, mode: str, size: tuple[int, int]) -> NDArray[Any]:
    """The pixels of the first frame, uint8, (height, width) or (height, width, 3)."""
    import warnings

    from PIL import Image

    try:
        # A decompression bomb is an error here, not a warning: one file would fill the memory.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.mode in _DEEP_MODES:
                    raise DataError(
                        f"{path}: {image.mode} pixels of more than 8 bits are not supported: pass arrays instead"
                    )
                pixels = image.convert(mode).resize(size, Image.Resampling.BILINEAR)
    except DataError:
        raise
    except Exception as error:  # damaged files fail in many ways
        raise DataError(f"{path}: not a readable image: {error or type(error).__name__}") from error
    return np.asarray(pixels)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _text(shape: Shape | None) -> str:
    return "(unknown)" if shape is None else "(" + ", ".join(str(n) if isinstance(n, int) else "?" for n in shape) + ")"
