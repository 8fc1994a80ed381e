"""isobit: small, fast, accurate networks, with the same bits in every framework.

sim = isobit.quantize("model.onnx", data)
sim.export("out/")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isobit.version import __version__ as __version__

if TYPE_CHECKING:
    from isobit.analysis.analyze import analyze
    from isobit.compression.compress import compress
    from isobit.encoding_transfer import transfer
    from isobit.encodings.encoding import Encoding, Encodings
    from isobit.encodings.quant_spec import QuantSpec
    from isobit.errors import IsobitError
    from isobit.forecast.plan_model import plan
    from isobit.layer_dumps.dump import dump
    from isobit.quantsim.load import load
    from isobit.quantsim.quantize import quantize
    from isobit.quantsim.quantsim import QuantSim
    from isobit.search.auto_quantize import auto_quantize
    from isobit.search.mixed_precision import mixed_precision

_PUBLIC = {
    "Encoding": "isobit.encodings.encoding",
    "Encodings": "isobit.encodings.encoding",
    "IsobitError": "isobit.errors",
    "QuantSim": "isobit.quantsim.quantsim",
    "QuantSpec": "isobit.encodings.quant_spec",
    "analyze": "isobit.analysis.analyze",
    "auto_quantize": "isobit.search.auto_quantize",
    "compress": "isobit.compression.compress",
    "dump": "isobit.layer_dumps.dump",
    "errors": "isobit.errors",
    "load": "isobit.quantsim.load",
    "mixed_precision": "isobit.search.mixed_precision",
    "plan": "isobit.forecast.plan_model",
    "quantize": "isobit.quantsim.quantize",
    "techniques": "isobit.techniques",
    "transfer": "isobit.encoding_transfer",
}

__all__ = [
    "Encoding",
    "Encodings",
    "IsobitError",
    "QuantSim",
    "QuantSpec",
    "analyze",
    "auto_quantize",
    "compress",
    "dump",
    "load",
    "mixed_precision",
    "plan",
    "quantize",
    "techniques",
    "transfer",
]


def __getattr__(name: str) -> Any:
    """Load public names on first use: `import isobit` stays as light as NumPy."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'isobit' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    value = module if _PUBLIC[name] == f"isobit.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
