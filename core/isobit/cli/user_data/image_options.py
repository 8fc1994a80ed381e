"""What the user asked for about images, as read from the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import Enum

import typer


@dataclass(frozen=True)
class ImageOptions:
    """Settings of preprocessing; None is left to the model's input."""

    size: tuple[int, int] | None = None  # height, width
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    channels: str | None = None  # rgb, bgr or gray
    layout: str | None = None  # nchw or nhwc

    @classmethod
    def of(
        cls,
        size: str | None,
        mean: str | None,
        std: str | None,
        scale: float | None,
        channels: Enum | None,
        layout: Enum | None,
    ) -> ImageOptions:
        """The options as typer reads them. Raises typer.BadParameter that names the option."""
        return cls(
            parse_size(size),
            parse_numbers(mean, "--mean"),
            parse_numbers(std, "--std"),
            scale,
            channels.value if channels else None,
            layout.value if layout else None,
        )

    @property
    def given(self) -> list[str]:
        """The options that were used, as typed."""
        names = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        return ["--image-size" if name == "size" else f"--{name}" for name in names]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``224x224``, height first."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if not match or not int(match[1]) or not int(match[2]):
        raise typer.BadParameter(
            f"{text!r} is no size: write HEIGHTxWIDTH, for example 224x224", param_hint="--image-size"
        )
    return int(match[1]), int(match[2])


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``0.485,0.456,0.406``, or one number for all channels."""
    if text is None:
        return None
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    # Three channels at most; "nan" and "inf" are floats to Python.
    if len(values) not in (1, 3) or any(value != value or abs(value) == float("inf") for value in values):
        raise typer.BadParameter(f"{text!r}: write one number, or three with commas between them", param_hint=option)
    if option == "--std" and any(value <= 0 for value in values):
        raise typer.BadParameter(f"{text!r}: values are divided by it, so it must be above 0", param_hint=option)
    return values
