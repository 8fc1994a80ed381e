"""Damage that knows nothing of a format: flipped bits, cuts, spliced chunks."""

from __future__ import annotations

from random import Random


def damage(content: bytes, random: Random) -> bytes:
    """A copy with one to four damages."""
    damaged = bytearray(content)
    for _ in range(random.randint(1, 4)):
        random.choice((_flip, _cut, _splice, _fill, _remove))(damaged, random)
    return bytes(damaged)


def _flip(content: bytearray, random: Random) -> None:
    for _ in range(random.choice((1, 2, 8, 64)) if content else 0):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)


def _cut(content: bytearray, random: Random) -> None:
    del content[random.randint(0, len(content)) :]


def _splice(content: bytearray, random: Random) -> None:
    start = random.randint(0, len(content))
    chunk = content[start : start + random.randint(1, 200)]
    content[random.randint(0, len(content)) : 0] = chunk


def _fill(content: bytearray, random: Random) -> None:
    start = random.randint(0, len(content))
    length = min(random.randint(1, 16), len(content) - start)
    content[start : start + length] = bytes([random.choice((0, 0xFF, 0x80, 0x30))]) * length


def _remove(content: bytearray, random: Random) -> None:
    start = random.randint(0, len(content))
    del content[start : start + random.randint(1, 64)]
