"""Names that a shell completes: those of what is installed, found when Tab is pressed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def target_names(incomplete: str) -> list[str]:
    """Targets; paths of .toml files are the shell's own matter."""
    return _beginning(_registered("targets"), incomplete)


def recipe_names(incomplete: str) -> list[str]:
    """Recipes."""
    return _beginning(_registered("recipes"), incomplete)


def backend_names(incomplete: str) -> list[str]:
    """Backends."""
    return _beginning(_registered("backends"), incomplete)


def scheme_names(incomplete: str) -> list[str]:
    """Calibration schemes."""
    return _beginning(_registered("calibrators"), incomplete)


def format_names(incomplete: str) -> list[str]:
    """Formats of encodings files."""
    return _beginning(_registered("formats"), incomplete)


def number_formats(incomplete: str) -> list[str]:
    """The types of number formats."""
    integers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16)]
    return _beginning([*integers, "float16", "bfloat16", "float8e4m3", "float8e5m2"], incomplete)


def compression_names(incomplete: str) -> list[str]:
    """Methods of compression."""
    from isobit.compression.compress import compression_methods

    try:
        return _beginning(compression_methods(), incomplete)
    except Exception:
        return []


def _registered(kind: str) -> Mapping[str, object]:
    """What plug-ins registered; nothing where that fails, because a message would land in the line being typed."""
    from isobit.plugins import registry

    try:
        registered: Mapping[str, object] = getattr(registry(), kind)()
    except Exception:
        return {}
    return registered


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
