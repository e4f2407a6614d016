"""Write and read the file of scores: the speakers' mean log-probabilities of each utterance, as .npz or as Parquet.

Both hold the same. A `.npz` is for NumPy, and a table in Parquet for pandas, DuckDB, Spark and the like. The scores of all
speakers come in pieces and are written as they come, so that no more than a piece is in memory; `docs/reference/files.md`
describes both files.

Shapes: U utterances, K speakers, N of them in a file of the best ones.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.extras import import_extra
from shards.files import atomic_writer, make_folder, open_regular
from shards.jsontext import from_json, parse_json
from spkid_dist.process.memory import free_memory, gigabytes
from spkid_dist.scoring.arrayfile import ArrayArchive, open_npz
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.parquetseal import check_seal, seal
from spkid_dist.scoring.scoreorigin import origin_from_text, origin_to_text
from spkid_dist.scoring.scores import Scores, check_scores

FORMAT_VERSION = 1
NPZ, PARQUET = ".npz", ".parquet"
PIECE_BYTES = 1 << 25  # of scores that are in memory at a time
MOST_ROWS = 1 << 16  # of a piece
METADATA_KEYS = ("format_version", "speakers")  # of a table in Parquet
THRESHOLD = "threshold"
ORIGIN = "origin"
SCALE_KEYS = tuple(field.name for field in fields_of(Scale))
LEAST_VALUE_BYTES = 4
MOST_SAID = 300  # characters of what a library says of a file
DAMAGED = "give a file that spkid score --scores wrote"


def pieces(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """The bounds of the pieces in which `num_rows` rows of `width` scores are written."""
    rows = max(1, min(MOST_ROWS, PIECE_BYTES // (4 * width)))
    return ((first, min(first + rows, num_rows)) for first in range(0, num_rows, rows))


def check_place(path: Path) -> None:
    """Look whether scores can be written to `path` at the end of a long scoring, before it begins.

    Raises:
        InputError: it is no file that can be replaced, or nothing can be written beside it.
        UsageError: the library that its kind needs is not installed.
    """
    _check_library(path)
    make_folder(path.parent)
    if path.exists() and not path.is_file():
        raise InputError(
            f"{path}: is a folder or a device, not a file that can be replaced; give --scores another name"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(
            f"{path}: can't be written: {error.strerror}; give --scores a file in another folder"
        ) from None


def _check_library(path: Path) -> None:
    """Raise UsageError where the library that the kind of `path` needs is not installed."""
    if path.suffix == PARQUET:
        _pyarrow()


def write_scores(
    path: Path,
    scores: Scores,
    means: Iterable[NDArray[np.float32]] | None = None,
    *,
    before_replacing: Callable[[], None] = lambda: None,
) -> None:
    """Write `scores` to `path`, .npz or .parquet, whole or not at all.

    Args:
        path: the file.
        scores: all but the means of all speakers, or also these.
        means: those, (U, K) in pieces of some rows each.
        before_replacing: called when all is written, before the file gets its name.

    Raises:
        InputError: it can't be written.
        UsageError: its name ends in neither, or pyarrow is needed and not installed.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"{path}: expected a file name that ends in {' or '.join(WRITERS)}")
    if means is None and scores.means is not None:
        means = (scores.means[first:last] for first, last in pieces(*scores.means.shape))
    _check_library(path)
    scores = replace(scores, keys=_plain(scores.keys), speakers=_plain(scores.speakers))
    with atomic_writer(path) as file:
        WRITERS[path.suffix](file, scores, means)
        before_replacing()


def read_scores(path: str | Path) -> Scores:
    """Read all of a file that `spkid score --scores` wrote.

    Raises:
        InputError: it is missing, damaged or no such file.
        UsageError: its name ends in neither .npz nor .parquet, or pyarrow is needed and not installed.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UsageError(f"{path}: expected a file of scores, whose name ends in {' or '.join(READERS)}")
    _check_library(path)
    try:
        scores = READERS[path.suffix](path)
        check_scores(scores)
    except OSError as error:
        raise InputError(f"{path}: can't read these scores: {error.strerror or error}; {DAMAGED}") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever the damaged bytes lead them to
        reason = " ".join(str(error).split())[:MOST_SAID]
        raise InputError(f"{path}: no file of scores, or a damaged one ({reason}); {DAMAGED}") from None
    return scores


def _plain(texts: list[str]) -> list[str]:
    """The texts as UTF-8 holds them, and as the results have them: an escape for each byte of a name that is not UTF-8."""
    return [text.encode(errors="backslashreplace").decode() for text in texts]


def _write_npz(file: Any, scores: Scores, means: Iterable[NDArray[np.float32]] | None) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        write_text(archive, "keys", scores.keys)
        write_text(archive, "speakers", scores.speakers)
        arrays: dict[str, NDArray[Any]] = {"found": scores.found, "true": scores.true}
        arrays |= {"margins": scores.margins, "windows": scores.windows, "format_version": np.array(FORMAT_VERSION)}
        if scores.scale is not None:
            assert scores.ratios is not None
            assert scores.posteriors is not None
            arrays |= {"log_likelihood_ratios": scores.ratios, "posteriors": scores.posteriors}
            arrays |= {name: np.array(value) for name, value in asdict(scores.scale).items()}
        if scores.accepted is not None:
            arrays |= {"accepted": scores.accepted, THRESHOLD: np.array(scores.threshold, np.float64)}
        if scores.origin is not None:
            arrays[ORIGIN] = np.array(origin_to_text(scores.origin))
        if means is None:
            assert scores.top_classes is not None
            assert scores.top_means is not None
            arrays |= {"top_classes": scores.top_classes, "top_scores": scores.top_means}
        for name, array in arrays.items():
            write_array(archive, name, array.dtype, array.shape, [array])
        if means is not None:
            shape = (len(scores.keys), len(scores.speakers))
            write_array(archive, "scores", np.dtype(np.float32), shape, means)


def write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    parts: Iterable[NDArray[Any]],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Write an array as a member of the archive, from parts that follow one another along its first axis."""
    member = zipfile.ZipInfo(f"{name}.npy")  # with a fixed date, so that equal scores make equal files
    member.compress_type = compression
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(member, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())


def write_text(archive: zipfile.ZipFile, name: str, texts: list[str]) -> None:
    """Write texts as an array of fixed width, packed: most of it is zeros."""
    dtype = np.dtype(f"<U{max(1, max(map(len, texts)))}")
    parts = (np.array(texts[first:last], dtype) for first, last in pieces(len(texts), dtype.itemsize))
    write_array(archive, name, dtype, (len(texts),), parts, zipfile.ZIP_DEFLATED)


def _read_npz(path: Path) -> Scores:
    with open_npz(path) as arrays:
        version = arrays.number("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version}, expected {FORMAT_VERSION}")
        is_whole = "scores" in arrays
        found = arrays.array("found")  # first, as it is not packed: no more keys are read than there are utterances
        return Scores(
            keys=arrays.texts("keys", found.size),
            speakers=arrays.texts("speakers"),
            found=found,
            true=arrays.array("true"),
            margins=arrays.array("margins"),
            windows=arrays.array("windows"),
            means=arrays.array("scores") if is_whole else None,
            top_classes=None if is_whole else arrays.array("top_classes"),
            top_means=None if is_whole else arrays.array("top_scores"),
            scale=_scale_of({name: arrays.number(name) for name in SCALE_KEYS if name in arrays}),
            ratios=_optional(arrays, "log_likelihood_ratios"),
            posteriors=_optional(arrays, "posteriors"),
            threshold=arrays.number(THRESHOLD) if THRESHOLD in arrays else None,
            accepted=_optional(arrays, "accepted"),
            origin=origin_from_text(arrays.text(ORIGIN) if ORIGIN in arrays else None),
        )


def _optional(arrays: ArrayArchive, name: str) -> NDArray[Any] | None:
    return arrays.array(name) if name in arrays else None


def _write_parquet(file: Any, scores: Scores, means: Iterable[NDArray[np.float32]] | None) -> None:
    arrow, parquet = _pyarrow()
    names = arrow.array(scores.speakers, arrow.string())
    fields = [("key", arrow.string()), ("speaker", arrow.string()), ("true_speaker", arrow.string())]
    fields += [("margin", arrow.float32()), ("windows", arrow.int64())]
    if scores.scale is not None:
        fields += [("log_likelihood_ratio", arrow.float32()), ("posterior", arrow.float32())]
    if scores.accepted is not None:
        fields += [("accepted", arrow.bool_())]
    if means is None:
        assert scores.top_classes is not None
        width = scores.top_classes.shape[1]
        fields += [
            ("top_speakers", arrow.list_(arrow.string(), width)),
            ("top_scores", arrow.list_(arrow.float32(), width)),
        ]
        parts: Iterable[Any] = (scores.top_classes[first:last] for first, last in pieces(*scores.top_classes.shape))
    else:
        fields += [("scores", arrow.list_(arrow.float32(), len(scores.speakers)))]
        parts = means
    metadata = dict(zip(METADATA_KEYS, (str(FORMAT_VERSION), json.dumps(scores.speakers)), strict=True))
    if scores.scale is not None:
        metadata |= {name: repr(value) for name, value in asdict(scores.scale).items()}
    if scores.threshold is not None:
        metadata |= {THRESHOLD: repr(scores.threshold)}
    if scores.origin is not None:
        metadata[ORIGIN] = origin_to_text(scores.origin)
    schema = arrow.schema(fields, metadata)
    in_dictionaries = ["speaker", "true_speaker", "top_speakers.list.element"]
    with parquet.ParquetWriter(file, schema, use_dictionary=in_dictionaries, write_page_checksum=True) as writer:
        first = 0
        for part in parts:
            last = first + len(part)
            writer.write_batch(_batch(arrow, schema, names, scores, first, last, part))
            first = last
    seal(file)


def _batch(arrow: Any, schema: Any, names: Any, scores: Scores, first: int, last: int, part: NDArray[Any]) -> Any:
    """The rows [first, last) of the table; `part` holds their means, or their best classes."""
    true = scores.true[first:last]
    columns = [
        arrow.array(scores.keys[first:last], arrow.string()),
        names.take(arrow.array(scores.found[first:last])),
        names.take(arrow.array(true, mask=true < 0)),
        arrow.array(scores.margins[first:last], arrow.float32()),
        arrow.array(scores.windows[first:last], arrow.int64()),
    ]
    if scores.scale is not None:
        assert scores.ratios is not None
        assert scores.posteriors is not None
        columns += [arrow.array(one[first:last], arrow.float32()) for one in (scores.ratios, scores.posteriors)]
    if scores.accepted is not None:
        columns += [arrow.array(scores.accepted[first:last])]
    values = [arrow.array(np.ascontiguousarray(part).ravel())]
    if scores.top_means is not None:
        values = [names.take(values[0]), arrow.array(np.ascontiguousarray(scores.top_means[first:last]).ravel())]
    columns += [arrow.FixedSizeListArray.from_arrays(value, part.shape[1]) for value in values]
    return arrow.record_batch(columns, schema=schema)


def _read_parquet(path: Path) -> Scores:
    _, parquet = _pyarrow()
    with open_regular(path) as raw, io.BufferedReader(raw) as file:
        check_seal(file)
        file.seek(0)
        _check_table_size(parquet.read_metadata(file))
        file.seek(0)
        table = parquet.read_table(file, page_checksum_verification=True)
    metadata = table.schema.metadata or {}
    version, speakers = (metadata[name.encode()].decode() for name in METADATA_KEYS)
    if version != str(FORMAT_VERSION):
        raise ValueError(f"format_version is {version}, expected {FORMAT_VERSION}")
    names: list[str] = from_json(list[str], parse_json(speakers), "speakers")
    classes = {name: index for index, name in enumerate(names)}
    is_whole = "scores" in table.column_names
    width = len(names) if is_whole else len(table["top_scores"][0])
    top = None if is_whole else table["top_speakers"].combine_chunks().flatten().to_pylist()
    scores = table["scores" if is_whole else "top_scores"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    return Scores(
        keys=table["key"].to_pylist(),
        speakers=names,
        found=np.array([classes[name] for name in table["speaker"].to_pylist()], np.int64),
        true=np.array([-1 if name is None else classes[name] for name in table["true_speaker"].to_pylist()], np.int64),
        margins=table["margin"].to_numpy(),
        windows=table["windows"].to_numpy(),
        means=scores if is_whole else None,
        top_classes=None if top is None else np.array([classes[name] for name in top], np.int32).reshape(-1, width),
        top_means=None if is_whole else scores,
        scale=_scale_of({name: float(metadata[name.encode()]) for name in SCALE_KEYS if name.encode() in metadata}),
        ratios=_column(table, "log_likelihood_ratio"),
        posteriors=_column(table, "posterior"),
        threshold=float(metadata[THRESHOLD.encode()]) if THRESHOLD.encode() in metadata else None,
        accepted=_column(table, "accepted"),
        origin=origin_from_text(metadata[ORIGIN.encode()].decode() if ORIGIN.encode() in metadata else None),
    )


def _check_table_size(metadata: Any) -> None:
    """Raise ValueError where a table is said to be larger than this machine's memory: what it is packed to may be a page."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    needed = max(sum(group.total_byte_size for group in groups), LEAST_VALUE_BYTES * values)
    if needed > free_memory():
        raise ValueError(f"it is said to hold {values} values, {gigabytes(needed)}, more than there is memory")


def _column(table: Any, name: str) -> NDArray[Any] | None:
    return table[name].to_numpy() if name in table.column_names else None


def _scale_of(values: dict[str, float]) -> Scale | None:
    return Scale(**values) if values else None


def _pyarrow() -> tuple[Any, Any]:
    needed_by = "a file of scores in Parquet"
    return import_extra("pyarrow", "parquet", needed_by), import_extra("pyarrow.parquet", "parquet", needed_by)


WRITERS: dict[str, Callable[[Any, Scores, Iterable[NDArray[np.float32]] | None], None]] = {
    NPZ: _write_npz,
    PARQUET: _write_parquet,
}
READERS: dict[str, Callable[[Path], Scores]] = {NPZ: _read_npz, PARQUET: _read_parquet}
