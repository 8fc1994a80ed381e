"""What an error of onnx or onnxruntime says, short enough for a message of isobit."""

from __future__ import annotations

import re

#: Where in onnxruntime's sources an error was raised, and its number: of no use to who exports a model.
_ORIGIN = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+ (\S+ )?onnxruntime::\S+\(.*?\) ")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or the name of its class."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def one_line(error: BaseException) -> str:
    """All lines of what an error says as one."""
    return _ORIGIN.sub("", " ".join(str(error).split()))[:400]
