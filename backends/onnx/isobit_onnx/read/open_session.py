"""Sessions of onnxruntime, which is quiet where a model does not load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CPU = ("CPUExecutionProvider",)


def open_session(source: str | bytes, options: Any, providers: Sequence[str] = CPU, **settings: Any) -> Any:
    """A session of a file or a serialized model. Raises onnxruntime's errors.

    Where another device fails, onnxruntime tries the CPU. Where that was the first one the model would be tried twice,
    with onnxruntime's own words on standard output.
    """
    import onnxruntime

    # What fails is raised in onnxruntime's words, which its log would say on standard error too.
    options.log_severity_level = 4
    fallback = int(tuple(providers) != CPU)
    return onnxruntime.InferenceSession(
        source, options, providers=list(providers), enable_fallback=fallback, **settings
    )
