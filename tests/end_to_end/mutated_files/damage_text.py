"""JSON and TOML whose fields are negative, NaN, huge, of another type, missing, doubled or nested deep."""

from __future__ import annotations

import json
from copy import deepcopy
from random import Random
from typing import Any

LONG, NUL, LONE_SURROGATE = "n" * 5000, "a\0b", "\ud800"

_VALUES: tuple[Any, ...] = (
    -1, 0, 1, 2, -(2**31), 2**31, 2**40, 2**63, 2**70, 10**400, -0.5, 1e-320, 1e38, 1e300, float("nan"), float("inf"),
    -float("inf"), True, False, None,
    "", "text", "-1", "nan", LONG, NUL, LONE_SURROGATE, [], {}, [[]], [None], [1, "x"],
    [-1], [float("nan")], {"": 0}, {"kind": "tensor"}, [[1, 2], [3]],
)  # fmt: skip

_TOML_VALUES = (
    "-1", "0", "2", "1e400", "nan", "inf", "-inf", "999999999999999999999999", "0.5", "true", "false", '""', '"text"',
    '"\\u0000"',
    '"int8"', '"int99"', '"int8 per-block(0)"', '"uint8 asymmetric per-tensor"', "[]", "{}", "[[1]]", "[-1]",
    "[nan, 1.0]", '["x", 1]', "2024-01-01", "{ a = 1 }", '["Conv?"]', f'"{LONG}"', "[" * 3000, "9" * 5000,
)  # fmt: skip


def damage_json(text: str, random: Random) -> str:
    """The text of the same JSON with one to three fields changed."""
    value = json.loads(text)
    for _ in range(random.randint(1, 3)):
        value = damage_value(value, random)
    changed = json.dumps(value)
    if random.random() < 0.05:  # a name twice
        start = changed.find("{") + 1
        end = changed.find(",", start)
        changed = changed[:start] + changed[start : end + 1] + changed[start:] if 0 < start < end else changed
    if random.random() < 0.03:
        depth = random.choice((500, 100_000))
        changed = changed.replace("[", "[" * depth, 1)
    return changed


def damage_value(value: Any, random: Random) -> Any:
    """A tree of dicts and lists with one place changed."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.08:
        return _other(value, random)
    key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
    if random.random() < 0.65 and isinstance(value[key], dict | list) and value[key]:
        value[key] = damage_value(value[key], random)
        return value
    action = random.random()
    if action < 0.2:
        del value[key]
    elif action < 0.3 and isinstance(value, list):
        value.insert(random.randrange(len(value) + 1), value[key])
    elif action < 0.3 and isinstance(value, dict):
        value[random.choice(("", NUL, LONG, f"{key}x"))] = value.pop(key)
    else:
        value[key] = _other(value[key], random)
    return value


def _other(value: Any, random: Random) -> Any:
    if type(value) in (int, float) and abs(value) < 1e300 and random.random() < 0.4:
        return random.choice((-value, value + 1, value - 1, value * 1000, float(value), str(value), [value], value / 3))
    if isinstance(value, list) and random.random() < 0.4:
        return random.choice((value[:-1], value + value[:1], [value], value[::-1], value * 50))
    return deepcopy(random.choice(_VALUES))  # damaged in its turn, it must not change what later files get


def damage_toml(text: str, random: Random) -> str:
    """The text with one to three lines changed."""
    lines = text.splitlines()
    for _ in range(random.randint(1, 3)):
        place = random.randrange(len(lines)) if lines else 0
        line = lines[place] if lines else ""
        key, equals, value = line.partition("=")
        action = random.random()
        if action < 0.6 and equals:
            lines[place] = f"{key}= {random.choice(_TOML_VALUES)}"
        elif action < 0.7:
            del lines[place : place + 1]
        elif action < 0.8:
            lines.insert(random.randrange(len(lines) + 1), line)
        elif action < 0.9 and equals:
            lines[place] = f"{random.choice((key.strip() + 'x', 'unknown', LONG))} = {value}"
        else:
            lines.insert(place, f"{random.choice(('x', 'schema', 'name', '[weights]', 'a.b.c'))} = 1")
    return "\n".join(lines) + "\n"
