"""What an error of onnx or onnxruntime says, short enough for a message of isobit."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """All lines of what an error says as one."""
    return " ".join(str(error).split())[:400]
