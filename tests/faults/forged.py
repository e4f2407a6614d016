"""Forge what checksums cover: datasets, checkpoints and weights whose digests fit, and whose meaning does not.

Digests are computed here from the format's description (docs/reference/format.md), not by the code that reads them.
"""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from arrays import saved
from damage import Damage, Place
from texts import ODD_VALUES, change_value

EXTREMES = (-1, 0, 1, 7, 2**15, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63))


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose fingerprint and digests of tables fit the folder."""
    for name, table in manifest["tables"].items() if isinstance(manifest.get("tables"), dict) else ():
        path = folder / str(name)
        if isinstance(table, dict) and path.is_file() and path.parent == folder:
            data = path.read_bytes()
            table |= {"bytes": len(data), "digest": xxhash.xxh3_128_hexdigest(data)}
    for shard in manifest["shards"] if isinstance(manifest.get("shards"), list) else ():
        path = folder / str(shard.get("name")) if isinstance(shard, dict) else folder
        if path.is_file() and path.parent == folder and "digest" in shard:
            shard |= {"bytes": path.stat().st_size, "digest": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    manifest.pop("fingerprint", None)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest = {"format": manifest.pop("format", None), "format_version": manifest.pop("format_version", None),
                "fingerprint": xxhash.xxh3_128_hexdigest(canonical.encode()), **manifest}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _forge_manifest(remove: bool) -> Callable[[Place], str]:
    def apply(place: Place) -> str:
        manifest = json.loads(place.path.read_bytes())
        said = change_value(manifest, place.random, remove)
        seal(place.path.parent, manifest)
        return said

    return apply


def _forge_names(place: Place) -> str:
    """A manifest that names files elsewhere."""
    manifest = json.loads(place.path.read_bytes())
    name = place.random.choice(
        ["../test/shard-000000.tar", "/etc/passwd", "pipe:touch pwned {name}", "http://127.0.0.1:1/x"]
    )
    if place.random.random() < 0.5:
        manifest["shards"][0]["name"] = name
    else:
        table = next(iter(manifest["tables"]))
        manifest["tables"][name] = manifest["tables"].pop(table)
    seal(place.path.parent, manifest)
    return name


def _forge_speakers(place: Place) -> str:
    """Names of speakers that a terminal or a table would obey."""
    manifest = json.loads(place.path.read_bytes())
    name = place.random.choice(["\x1b[31mred", "a\tb\nc", "\x00", "a" * 1_000_000, "\ud800", "\u202egnp"])
    manifest["speakers"][0] = name
    try:
        seal(place.path.parent, manifest)
    except UnicodeEncodeError:
        return "not to be written"
    return repr(name[:20])


def _forge_table(place: Place) -> str:
    """One value of a table, and a manifest that fits."""
    table = np.load(place.path).copy()
    column = place.random.choice(table.dtype.names)
    row = place.random.randrange(len(table))
    bounds = np.iinfo(table.dtype[column])
    value = place.random.choice([item for item in EXTREMES if bounds.min <= item <= bounds.max])
    before = table[column][row]
    table[column][row] = value
    place.path.write_bytes(saved(table))
    seal(place.path.parent, json.loads((place.path.parent / "manifest.json").read_bytes()))
    return f"{column}[{row}]: {before} is now {value}"


def _forge_swap(place: Place) -> str:
    """Two rows of a table change places."""
    table = np.load(place.path).copy()
    first, second = place.random.randrange(len(table)), place.random.randrange(len(table))
    table[[first, second]] = table[[second, first]]
    place.path.write_bytes(saved(table))
    seal(place.path.parent, json.loads((place.path.parent / "manifest.json").read_bytes()))
    return f"rows {first} and {second}"


def _forge_block(change: Callable[[bytearray, random.Random], str]) -> Callable[[Place], str]:
    """Change the bytes of a shard's first block, and make the block's checksum, the tables and the manifest fit."""

    def apply(place: Place) -> str:
        folder = place.path.parent
        data = bytearray(place.path.read_bytes())
        said = change(data, place.random)
        place.path.write_bytes(data)
        if not (folder / "manifest.json").exists():
            return said
        manifest = json.loads((folder / "manifest.json").read_bytes())
        blocks_path = folder / next(name for name in manifest["tables"] if name.startswith("blocks"))
        blocks = np.load(blocks_path).copy()
        for row in range(len(blocks)):
            if blocks["shard"][row] == int(place.path.stem.rpartition("-")[2]):
                begin = int(blocks["payload_offset"][row]) - 512
                extent = bytes(data[begin : begin + int(blocks["extent_bytes"][row])])
                blocks["checksum"][row] = xxhash.xxh3_64_intdigest(extent)
        blocks_path.write_bytes(saved(blocks))
        seal(folder, manifest)
        return said

    return apply


def _frames(value: float) -> Callable[[bytearray, random.Random], str]:
    def change(data: bytearray, draw: random.Random) -> str:
        at = 512 + 128 + 4 * draw.randrange(20)
        data[at : at + 4] = np.float32(value).tobytes()
        return f"the value at byte {at} is {value}"

    return change


def _keys(old: bytes, new: bytes) -> Callable[[bytearray, random.Random], str]:
    def change(data: bytearray, _draw: random.Random) -> str:
        at = data.index(old, data.index(b'"keys"'))
        data[at : at + len(new)] = new
        return f"{old!r} is {new!r}"

    return change


def _json_place(make: Callable[[int], bytes]) -> Callable[[bytearray, random.Random], str]:
    """Other JSON in the place of the block's own, of the same length."""

    def change(data: bytearray, _draw: random.Random) -> str:
        begin = data.rindex(b"\0{", 0, data.index(b'"keys"')) + 1
        length = int(bytes(data[begin - 512 : begin][124:135]), 8)
        data[begin : begin + length] = make(length)[:length].ljust(length)
        return f"{length} bytes"

    return change


def _member(at: int, value: bytes) -> Callable[[bytearray, random.Random], str]:
    def change(data: bytearray, _draw: random.Random) -> str:
        data[at : at + len(value)] = value
        return f"byte {at}"

    return change


def _damage(name: str, apply: Callable[[Place], object], refused: bool = False) -> Damage:
    return Damage(name=name, apply=apply, refused=refused, forged=True)


MANIFEST = (
    *(_damage(f"a forged value ({number})", _forge_manifest(False)) for number in range(8)),
    *(_damage(f"a forged member less ({number})", _forge_manifest(True)) for number in range(2)),
    *(_damage(f"forged names of files ({number})", _forge_names) for number in range(3)),
    *(_damage(f"forged names of speakers ({number})", _forge_speakers) for number in range(3)),
)
TABLES = (
    *(_damage(f"a forged value ({number})", _forge_table) for number in range(14)),
    *(_damage(f"forged order ({number})", _forge_swap) for number in range(2)),
)
TAR = (
    _damage("forged NaN", _forge_block(_frames(np.nan))),
    _damage("forged infinity", _forge_block(_frames(np.inf))),
    _damage("forged 1e38", _forge_block(_frames(1e38))),
    _damage("a forged key with a line break", _forge_block(_keys(b"SYN/", b"\\n\\t")), refused=True),
    _damage("a forged key with an escape", _forge_block(_keys(b"SYN/spk", b"\\u001b["))),
    _damage("another key, forged", _forge_block(_keys(b"SYN/", b"SYM/"))),
    _damage("a forged key that is a number", _forge_block(_keys(b'"SYN', b"1   ")), refused=True),
    _damage("forged JSON, deep", _forge_block(_json_place(lambda n: b"[" * n))),
    _damage("forged JSON, a long number", _forge_block(_json_place(lambda n: b"9" * n))),
    _damage("forged JSON, a list", _forge_block(_json_place(lambda _: b"[]"))),
    _damage("forged JSON, no keys", _forge_block(_json_place(lambda _: b'{"keys": null, "speakers": null}'))),
    _damage("a forged name of a member", _forge_block(_member(0, b"../../etc/passwd"))),
    _damage("a forged type of a member", _forge_block(_member(156, b"2"))),
    _damage("a forged size of a member", _forge_block(_member(124, b"77777777777"))),
    _damage("a forged header of an array", _forge_block(_member(512 + 60, b"(99999999, 99999)"))),
)


def _seal_checkpoint(folder: Path) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes())}
        for path in (folder / "state.pt", folder / "training.json")
    }
    manifest = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": files}))


def _forge_values(remove: bool) -> Callable[[Place], str]:
    def apply(place: Place) -> str:
        value = json.loads(place.path.read_bytes())
        said = change_value(value, place.random, remove)
        place.path.write_text(json.dumps(value))
        _seal_checkpoint(place.path.parent)
        return said

    return apply


CHECKPOINT = (
    *(_damage(f"a forged value ({number})", _forge_values(False)) for number in range(10)),
    *(_damage(f"a forged member less ({number})", _forge_values(True)) for number in range(5)),
)


def _tensor_changes() -> dict[str, Callable[[Any], Any]]:
    """Tensors that are not what a network takes."""
    import torch

    return {
        "NaN": lambda tensor: torch.full_like(tensor, float("nan")),
        "infinity": lambda tensor: torch.full_like(tensor, float("inf")),
        "1e38": lambda tensor: torch.full_like(tensor, 1e38),
        "meta": lambda tensor: tensor.to("meta"),
        "sparse": lambda tensor: tensor.to_sparse(),
        "another shape": lambda tensor: tensor.reshape(-1)[:1],
        "no shape": lambda tensor: tensor.reshape(-1)[0].clone(),
        "terabytes of one value": lambda tensor: tensor.reshape(-1)[:1].expand(1 << 40),
        "integers": lambda tensor: tensor.to(torch.int64),
        "complex": lambda tensor: tensor.to(torch.complex64),
        "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
        "a list": lambda tensor: tensor.tolist(),
        "a string": lambda _: "weights",
        "nothing": lambda _: None,
        "booleans": lambda tensor: tensor > 0,
        "transposed": lambda tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor.reshape(1, -1),
    }


def tensors_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a nested state has tensors."""
    if hasattr(value, "is_floating_point"):
        return [path]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, item in inside for found in tensors_of(item, (*path, name))]


def _set(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> None:
    for name in path[:-1]:
        value = value[name]
    value[path[-1]] = change(value[path[-1]])


def _write_state(place: Place, state: Any) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    place.path.write_bytes(buffer.getvalue())
    if place.path.name == "state.pt":
        _seal_checkpoint(place.path.parent)


def _forge_tensor(name: str) -> Callable[[Place], str]:
    def apply(place: Place) -> str:
        import torch

        state = torch.load(place.path, weights_only=True)
        path = place.random.choice(tensors_of(state))
        _set(state, path, _tensor_changes()[name])
        _write_state(place, state)
        return ".".join(map(str, path))

    return apply


def _forge_members(place: Place) -> str:
    import torch

    state = torch.load(place.path, weights_only=True)
    name = place.random.choice(list(state))
    match place.random.randrange(4):
        case 0:
            del state[name]
        case 1:
            state["more"] = torch.zeros(3)
        case 2:
            state = list(state.values())
        case _:
            state[name] = place.random.choice(ODD_VALUES)
    _write_state(place, state)
    return str(name)


class _Runs:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch pwned",)


def _pickled_code(place: Place) -> None:
    _write_state(place, {"0.weight": _Runs()})


def _traced(place: Place) -> None:
    import torch

    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(place.path))


def _safetensors(place: Place) -> None:
    import safetensors.torch
    import torch

    place.path.write_bytes(safetensors.torch.save({"0.weight": torch.zeros(2, 2)}))


NAMES = ("NaN", "infinity", "1e38", "meta", "sparse", "another shape", "no shape", "terabytes of one value", "integers",
         "complex", "float8", "a list", "a string", "nothing", "booleans", "transposed")  # fmt: skip
PLAUSIBLE = ("1e38", "integers", "booleans", "transposed", "float8")  # a network's own values may be any
WEIGHTS = (
    *(_damage(f"tensors: {name}", _forge_tensor(name), refused=name not in PLAUSIBLE) for name in NAMES),
    *(_damage(f"members ({number})", _forge_members) for number in range(5)),
    _damage("code in a pickle", _pickled_code, refused=True),
    _damage("safetensors", _safetensors, refused=True),
    _damage("a traced network", _traced, refused=True),
)
