"""Archives of arrays (npz, safetensors, zips of both) with members that lie about what they hold."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from random import Random
from typing import Any

import numpy as np
from mutated_files.damage_bytes import damage
from mutated_files.damage_text import damage_json, damage_toml, damage_value

_HUGE = (2**31, 2**33, 2**45, 2**62, 10**30)


def damage_zip(content: bytes, random: Random) -> bytes:
    """A zip with one or two members changed by what they are, one left out, or one doubled."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in random.sample(list(members), min(len(members), random.randint(1, 2))):
        if random.random() < 0.1:
            del members[name]
        else:
            members[name] = _damage_member(name, members[name], random)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore", UserWarning)  # a name twice
        for name, member in members.items():
            archive.writestr(name, member)
        if members and random.random() < 0.05:
            archive.writestr(*random.choice(list(members.items())))
    return buffer.getvalue()


def _damage_member(name: str, content: bytes, random: Random) -> bytes:
    if random.random() < 0.15:
        return damage(content, random)
    if name.endswith(".json"):
        return damage_json(content.decode(), random).encode("utf-8", "surrogatepass")
    if name.endswith(".toml"):
        return damage_toml(content.decode(), random).encode("utf-8", "surrogatepass")
    if name.endswith(".safetensors"):
        return damage_safetensors(content, random)
    if name.endswith(".npz"):
        return damage_zip(content, random)
    return damage_npy(content, random)


def damage_safetensors(content: bytes, random: Random) -> bytes:
    """A header that says something else than what follows it."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    if header and random.random() < 0.5:
        entry = header[random.choice(list(header))]
        if isinstance(entry, dict) and "shape" in entry:
            entry[random.choice(("shape", "data_offsets"))] = [random.choice((-1, 0, 1, *_HUGE)) for _ in range(2)]
    else:
        header = damage_value(header, random)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    size = random.choice(_HUGE) % 2**64 if random.random() < 0.1 else len(text)
    return struct.pack("<Q", size) + text + content[8 + length :]


def damage_npy(content: bytes, random: Random) -> bytes:
    """An array of another type, shape or content, or a header that lies; a JSON text in bytes is changed as such."""
    array = np.load(io.BytesIO(content), allow_pickle=False)
    text = array.tobytes() if array.dtype == np.uint8 and array.ndim == 1 else b""
    if text.startswith((b"{", b"[")):
        changed = damage_json(text.decode(), random).encode("utf-8", "surrogatepass")
        return _npy(np.frombuffer(changed, np.uint8))
    if random.random() < 0.25:
        return _lying(array, random)
    return _npy(_other(array, random))


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype == object)
    return buffer.getvalue()


def _lying(array: np.ndarray[Any, Any], random: Random) -> bytes:
    shape = random.choice(((-1,), (0,), (10**9,), (2**33,), (2**62, 4), (2**31, 2**31), (True,), (10**30,), (3.5,)))
    described = random.choice((array.dtype.str, "<f8", "|O", "<U1000000", "<c16", "x", "|V0"))
    header = repr({"descr": described, "fortran_order": random.choice((False, True, 3)), "shape": shape}).encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()


def _other(array: np.ndarray[Any, Any], random: Random) -> np.ndarray[Any, Any]:
    flat = array.reshape(-1).copy()
    action = random.randrange(7)
    if action == 0 and flat.size:
        values = (-1, -(2**31), 2**31, 2**62) if array.dtype.kind in "iu" else (np.nan, np.inf, -np.inf, -1e300, 1e300)
        with np.errstate(all="ignore"):
            flat[random.randrange(flat.size)] = np.asarray(random.choice(values)).astype(array.dtype)
        return flat.reshape(array.shape)
    if action == 1:
        kind = random.choice((np.complex128, np.bool_, np.str_, np.float16, np.int8, object, "datetime64[s]", "V3"))
        return np.zeros(array.shape, kind)
    if action == 2:
        return flat[: random.randint(0, flat.size)]
    if action == 3:
        return np.zeros(random.choice(((), (0,), (1, 1, 1), (0, 2), (70_000,), (3, 3), (100, 100))), array.dtype)
    if action == 4:
        return np.concatenate([flat, flat[:1], flat[:3]])
    if action == 5:
        return array[..., None] if random.random() < 0.5 else array.astype(">f8")
    with np.errstate(all="ignore"):
        return (-array.astype(np.float64) - 1).astype(array.dtype)
