"""Settings of the whole suite: each graph that a pass or an edit leaves is checked, and integer sums are exact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

os.environ.setdefault("ISOBIT_CHECK", "1")

#: What the tests of a folder import; whose framework is not installed is left out, and the header says so.
_FRAMEWORKS = {"torch": ("torch",), "tensorflow": ("tensorflow",), "cross_framework": ("torch", "tensorflow")}


def _missing(folder: str, framework: str) -> bool:
    if folder == "cross_framework" and f"ISOBIT_PYTHON_{framework.upper()}" in os.environ:
        return False  # it is in another environment
    spec = find_spec(framework)
    return spec is None or spec.origin is None


collect_ignore = [folder for folder, needed in _FRAMEWORKS.items() if any(_missing(folder, name) for name in needed)]


def pytest_report_header() -> str | None:
    folders = ", ".join(f"tests/{folder}" for folder in collect_ignore)
    return f"not collected, because a framework is not installed: {folders}" if folders else None


@pytest.fixture(scope="session", autouse=True)
def _exact_integer_sums() -> Iterator[None]:
    """Sessions of onnxruntime have exact integer sums where the processor's own saturate (no VNNI).

    The tests are about files; what a processor without VNNI makes of them is in `docs/targets.md`. A test that says
    ``session.x64quantprecision`` itself gets what it says.
    """
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        yield
        return
    import onnxruntime

    from isobit_onnx.run.saturation import sums_saturate

    if not sums_saturate():
        yield
        return
    plain = onnxruntime.InferenceSession

    class ExactSession(plain):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, *arguments: Any, **settings: Any) -> None:
            options = onnxruntime.SessionOptions() if sess_options is None else sess_options
            if not _entry(options, "session.x64quantprecision") and _entry(options, "session.disable_quant_qdq") != "1":
                options.add_session_config_entry("session.x64quantprecision", "1")
            super().__init__(model, options, *arguments, **settings)

    onnxruntime.InferenceSession = ExactSession
    yield
    onnxruntime.InferenceSession = plain


def _entry(options: Any, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:  # the options have no such entry
        return ""
