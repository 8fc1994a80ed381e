"""Settings of the whole suite: each graph that a pass or an edit leaves is checked; how sessions of onnxruntime run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

os.environ.setdefault("ISOBIT_CHECK", "1")
os.environ.setdefault("USE_TF", "0")  # the Trainer of transformers refuses Keras 3 where TensorFlow is installed too

_SPINNING, _EXACT = "session.intra_op.allow_spinning", "session.x64quantprecision"

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


def pytest_collection_finish() -> None:
    """Collecting garbage looks no more at what was imported: with a framework it took a twelfth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _sessions_of_tests() -> Iterator[None]:
    """Sessions of onnxruntime wait without spinning, and have exact integer sums where the processor's own saturate.

    A thread that spins between the short runs of tests takes as much of the processor as the runs do. The tests are
    about files; what a processor without VNNI makes of them is in `docs/targets.md`. A test that says one of these
    settings itself gets what it says.
    """
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        yield
        return
    import onnxruntime

    from isobit_onnx.run.saturation import sums_saturate

    saturates = sums_saturate()
    plain = onnxruntime.InferenceSession

    class SessionOfTests(plain):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, sess_options: Any = None, *arguments: Any, **settings: Any) -> None:
            options = onnxruntime.SessionOptions() if sess_options is None else sess_options
            if not _entry(options, _SPINNING):
                options.add_session_config_entry(_SPINNING, "0")
            is_exact = not saturates or _entry(options, _EXACT) or _entry(options, "session.disable_quant_qdq") == "1"
            if not is_exact:
                options.add_session_config_entry(_EXACT, "1")
            super().__init__(model, options, *arguments, **settings)

    onnxruntime.InferenceSession = SessionOfTests
    yield
    onnxruntime.InferenceSession = plain


def _entry(options: Any, key: str) -> str:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:  # the options have no such entry
        return ""
