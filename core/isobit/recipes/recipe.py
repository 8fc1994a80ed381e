"""Recipes: which techniques run, in what order and when, as data in TOML. `docs/techniques.md` explains the keys."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from isobit.errors import IsobitError, RecipeError, did_you_mean
from isobit.files import write_atomically
from isobit.placement.plan import Plan
from isobit.recipes.toml_text import key_text, value_text

SCHEMA = 1

_KEYS = ("schema", "name", "description", "judge_samples", "hold_back", "steps")
_STEP_KEYS = ("technique", "settings", "keep", "min_gain", "weight_bits_below", "optional")


@dataclass(frozen=True)
class Step:
    """One technique with its settings.

    `keep` says that it stays whatever it does to the outputs; `min_gain` the decibels by which it must raise their SQNR
    where it is judged, else any gain will do; `weight_bits_below` that it runs only where the plan has
    integer weights of fewer bits; `optional` that it is left out where the data serves once, and it needs a pass of
    its own.
    """

    technique: type[Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    weight_bits_below: int | None = None
    optional: bool = False
    min_gain: float = 0.0

    @property
    def name(self) -> str:
        """The technique's name."""
        return self.technique.__name__

    def make(self) -> Any:
        """The technique."""
        return self.technique(**self.settings)

    def obstacle(self, plan: Plan) -> str:
        """Why the step does not run for this plan, or an empty text."""
        limit = self.weight_bits_below
        bits = [placement.spec.bits for placement in plan.of_kind("weight") if placement.spec.is_integer]
        if limit is not None and not any(width < limit for width in bits):
            return f"no weight has fewer than {limit} bits"
        return ""

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        notes = [f"when weights have fewer than {self.weight_bits_below} bits"] if self.weight_bits_below else []
        notes += ["always kept"] if self.keep else []
        notes += [f"where it gains {self.min_gain:g} dB"] if self.min_gain else []
        notes += ["where the data serves twice"] if self.optional else []
        return f"{self.name}({settings})" + (f"   {', '.join(notes)}" if notes else "")


@dataclass(frozen=True)
class StepResult:
    """What a step did: `outcome` is ``"kept"``, ``"rolled back"``, ``"changed nothing"`` or ``"skipped"``.

    `passes` over the data; `before` and `after` are the SQNR of the outputs in dB, None where nothing was judged.
    """

    step: str
    outcome: str
    seconds: float = 0.0
    passes: float = 0.0
    before: float | None = None
    after: float | None = None
    why: str = ""

    def __str__(self) -> str:
        judged = "" if self.before is None or self.after is None else f", SQNR {self.before:.2f} -> {self.after:.2f} dB"
        why = f": {self.why}" if self.why else ""
        return f"{self.step} {self.outcome}{why} ({self.seconds:.1f} s, {self.passes:.1f} passes{judged})"


@dataclass(frozen=True)
class Recipe:
    """Steps before calibration, and about how many samples judge each of them (0: none is judged, all are kept).

    `hold_back`: those samples are not fitted to, a quarter of the data at most, where that holds 16 or more.
    """

    name: str
    description: str
    steps: tuple[Step, ...]
    judge_samples: int = 0
    hold_back: bool = False

    def to_toml(self, path: str | PathLike[str] | None = None) -> str:
        """The recipe as TOML, which is also written to `path` where one is given."""
        text = "\n".join(_lines(self)) + "\n"
        if path is not None:
            with write_atomically(Path(fspath(path))) as temporary:
                temporary.write_text(text, "utf-8")
        return text

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.description}"]
        lines += [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        lines.append(f"  {len(self.steps) + 1}. calibrate, by the method you choose")
        if self.judge_samples:
            lines.append(
                f"  After each step the outputs are compared on about {self.judge_samples} samples; "
                "one that does not raise their SQNR for certain is rolled back."
            )
        return "\n".join(lines)


#: The keys of a step besides its technique and settings, and what they are unless said.
_UNLESS_SAID = {"keep": False, "min_gain": 0.0, "weight_bits_below": None, "optional": False}


def _lines(recipe: Recipe) -> Iterator[str]:
    """A recipe as lines of TOML."""
    yield f"schema = {SCHEMA}"
    yield f"name = {value_text(recipe.name)}"
    yield f"description = {value_text(recipe.description)}"
    if recipe.judge_samples:
        yield f"judge_samples = {recipe.judge_samples}"
    if recipe.hold_back:
        yield "hold_back = true"
    for step in recipe.steps:
        yield ""
        yield "[[steps]]"
        yield f"technique = {value_text(step.name)}"
        further = {key: getattr(step, key) for key, default in _UNLESS_SAID.items() if getattr(step, key) != default}
        yield from (f"{key} = {value_text(value)}" for key, value in further.items())
        # a table has a line for each entry: a layer a line is what a person reads and changes
        tables = {key: value for key, value in step.settings.items() if isinstance(value, Mapping) and value}
        single = {key: value for key, value in step.settings.items() if key not in tables}
        yield from (f"settings.{key_text(key)} = {value_text(value)}" for key, value in single.items())
        for key, table in tables.items():
            yield f"[steps.settings.{key_text(key)}]"
            yield from (f"{key_text(str(name))} = {value_text(value)}" for name, value in table.items())


def load_recipe(path: Path, techniques: Mapping[str, type[Any]]) -> Recipe:
    """Read a recipe file. Raises RecipeError that names the file and the key."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or a path with a null byte
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    return parse_recipe(text, str(path), techniques)


def parse_recipe(text: str, where: str, techniques: Mapping[str, type[Any]]) -> Recipe:
    """Read a recipe from TOML `text`; `where` names it in errors, `techniques` are those it may use, by name."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and a number of too many digits
        raise RecipeError(f"{where}: not valid TOML: {error}") from error
    _check_keys(data, _KEYS, where)
    if data.get("schema") != SCHEMA or isinstance(data["schema"], bool):
        found = repr(data["schema"]) if "schema" in data else "no such key"
        raise RecipeError(f"{where}: schema: must be {SCHEMA}, found {found}: the file begins with 'schema = {SCHEMA}'")
    name, description = (_typed(data, key, str, "", where) for key in ("name", "description"))
    samples = _typed(data, "judge_samples", int, 0, where)
    if not name or samples < 0:
        raise RecipeError(f"{where}: it needs a name, and judge_samples that are not negative")
    rows = _typed(data, "steps", list, [], where)
    steps = tuple(_step(row, f"{where}: step {number}", techniques) for number, row in enumerate(rows, 1))
    return Recipe(name, description, steps, samples, _typed(data, "hold_back", bool, False, where))


def _step(row: Any, where: str, techniques: Mapping[str, type[Any]]) -> Step:
    if not isinstance(row, dict):
        raise RecipeError(f"{where}: must be a table, not {row!r}")
    _check_keys(row, _STEP_KEYS, where)
    name = _typed(row, "technique", str, "", where)
    if name not in techniques:
        technique_names = ", ".join(sorted(techniques))
        raise RecipeError(
            f"{where}: unknown technique {name!r}{did_you_mean(name, techniques)}; known are {technique_names}"
        )
    bits = _typed(row, "weight_bits_below", int, None, where)
    settings = _typed(row, "settings", dict, {}, where)
    keep, optional = (_typed(row, key, bool, False, where) for key in ("keep", "optional"))
    technique = techniques[name]
    _check_keys(settings, [item.name for item in fields(technique)], f"{where}: settings")
    try:
        technique(**settings)
    except (IsobitError, TypeError, ValueError) as error:
        raise RecipeError(f"{where}: settings of {name}: {error}") from error
    gain = row.get("min_gain", 0.0)
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not gain >= 0:
        raise RecipeError(f"{where}: min_gain: must be a number of decibels, 0 or more, not {gain!r}")
    return Step(technique, settings, keep, bits, optional, float(gain))


def _check_keys(data: Mapping[str, Any], allowed: Any, where: str) -> None:
    for key in data:
        if key not in allowed:
            raise RecipeError(
                f"{where}: unknown key {key!r}{did_you_mean(key, allowed)}; known are {', '.join(allowed)}"
            )


def _typed(data: Mapping[str, Any], key: str, kind: type[Any], default: Any, where: str) -> Any:
    value = data.get(key, default)
    if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise RecipeError(f"{where}: {key}: must be {kind.__name__}, not {value!r}")
    return value
