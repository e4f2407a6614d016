"""Write and read the file of scores: the speakers' mean log-probabilities of each utterance, as .npz or as Parquet.

Both hold the same. A `.npz` is for NumPy, and a table in Parquet for pandas, DuckDB, Spark and the like. The scores of all
speakers come in pieces and are written as they come, so that no more than a piece is in memory; `docs/reference/files.md`
describes both files.

Shapes: U utterances, K speakers, N of them in a file of the best ones.
"""

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError, UsageError
from shards.extras import import_extra
from shards.files import atomic_writer, make_folder
from spkid_dist.scoring.calibration import Scale
from spkid_dist.scoring.scoreorigin import Origin, origin_from_text, origin_to_text

FORMAT_VERSION = 1
NPZ, PARQUET = ".npz", ".parquet"
PIECE_BYTES = 1 << 25  # of scores that are in memory at a time
MOST_ROWS = 1 << 16  # of a piece
METADATA_KEYS = ("format_version", "speakers")  # of a table in Parquet
THRESHOLD = "threshold"
ORIGIN = "origin"
SCALE_KEYS = tuple(field.name for field in fields_of(Scale))
DAMAGED = "give a file that spkid score --scores wrote"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of U utterances, in the order of the results.

    Attributes:
        keys: of the utterances, U.
        speakers: the model's, in class order, K.
        found: the class found, (U,) int64.
        true: the true class, (U,) int64; -1 where it is not known.
        margins: by how much the mean log-probability of the class found exceeds the second best, (U,) float32.
        windows: of each utterance, (U,) int64.
        means: mean log-probabilities of all speakers, (U, K) float32; None where only the best are kept.
        top_classes: the N best classes, best first, (U, N) int32; None where all speakers are kept.
        top_means: their mean log-probabilities, (U, N) float32; None where all speakers are kept.
        scale: how means become calibrated scores; None where they are not calibrated, and the next two are None then.
        ratios: calibrated log-likelihood ratio of the found speaker against the others, (U,) float32.
        posteriors: calibrated posterior of the found speaker, (U,) float32.
        threshold: of the ratios, below which utterances are called unknown; None where there was none.
        accepted: whether the ratio, in float64, is at least the threshold, (U,) bool; None where there was none.
        origin: the weights and the utterances; None where the file does not say.
    """

    keys: list[str]
    speakers: list[str]
    found: NDArray[np.int64]
    true: NDArray[np.int64]
    margins: NDArray[np.float32]
    windows: NDArray[np.int64]
    means: NDArray[np.float32] | None = None
    top_classes: NDArray[np.int32] | None = None
    top_means: NDArray[np.float32] | None = None
    scale: Scale | None = None
    ratios: NDArray[np.float32] | None = None
    posteriors: NDArray[np.float32] | None = None
    threshold: float | None = None
    accepted: NDArray[np.bool_] | None = None
    origin: Origin | None = None


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
        _check(scores)
    except OSError as error:
        raise InputError(f"{path}: can't read these scores: {error.strerror or error}; {DAMAGED}") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever the damaged bytes lead them to
        reason = " ".join(str(error).split())
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
    with path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array")
        version = arrays["format_version"].item()
        if version != FORMAT_VERSION:
            raise ValueError(f"format_version is {version}, expected {FORMAT_VERSION}")
        is_whole = "scores" in arrays
        return Scores(
            keys=arrays["keys"].tolist(),
            speakers=arrays["speakers"].tolist(),
            found=arrays["found"],
            true=arrays["true"],
            margins=arrays["margins"],
            windows=arrays["windows"],
            means=arrays["scores"] if is_whole else None,
            top_classes=None if is_whole else arrays["top_classes"],
            top_means=None if is_whole else arrays["top_scores"],
            scale=_scale_of({name: arrays[name].item() for name in SCALE_KEYS if name in arrays}),
            ratios=arrays.get("log_likelihood_ratios"),
            posteriors=arrays.get("posteriors"),
            threshold=arrays[THRESHOLD].item() if THRESHOLD in arrays else None,
            accepted=arrays.get("accepted"),
            origin=origin_from_text(arrays[ORIGIN].item() if ORIGIN in arrays else None),
        )


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
    with parquet.ParquetWriter(file, schema, use_dictionary=in_dictionaries) as writer:
        first = 0
        for part in parts:
            last = first + len(part)
            writer.write_batch(_batch(arrow, schema, names, scores, first, last, part))
            first = last


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
    with path.open("rb") as file:
        table = parquet.read_table(file)
    metadata = table.schema.metadata or {}
    version, speakers = (metadata[name.encode()].decode() for name in METADATA_KEYS)
    if version != str(FORMAT_VERSION):
        raise ValueError(f"format_version is {version}, expected {FORMAT_VERSION}")
    names: list[str] = json.loads(speakers)
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


def _column(table: Any, name: str) -> NDArray[Any] | None:
    return table[name].to_numpy() if name in table.column_names else None


def _scale_of(values: dict[str, float]) -> Scale | None:
    return Scale(**values) if values else None


def _pyarrow() -> tuple[Any, Any]:
    needed_by = "a file of scores in Parquet"
    return import_extra("pyarrow", "parquet", needed_by), import_extra("pyarrow.parquet", "parquet", needed_by)


def _check(scores: Scores) -> None:
    """Raise ValueError where the arrays do not fit together, or are of other types than they should be."""
    count = (len(scores.keys),)
    width = (len(scores.keys), len(scores.speakers))
    kept = width if scores.top_means is None else scores.top_means.shape
    for name, kind, shape in (
        ("found", "i", count),
        ("true", "i", count),
        ("margins", "f", count),
        ("windows", "i", count),
        ("means", "f", width),
        ("top_classes", "i", kept),
        ("top_means", "f", kept),
        ("ratios", "f", count),
        ("posteriors", "f", count),
        ("accepted", "b", count),
    ):
        array = getattr(scores, name)
        if array is not None and (array.dtype.kind != kind or array.shape != shape):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, expected {shape}")
    for name, least in (("found", 0), ("true", -1), ("top_classes", 0)):
        classes = getattr(scores, name)
        if classes is not None and len(classes) and not least <= classes.min() <= classes.max() < width[1]:
            raise ValueError(
                f"{name} has classes {classes.min()} to {classes.max()}, expected {least} to {width[1] - 1}"
            )
    if (scores.threshold is None) != (scores.accepted is None):
        raise ValueError("of accepted and threshold it has one only")
    if kept[:1] != count or not 1 <= kept[1] <= width[1]:
        raise ValueError(f"it keeps {kept} scores of {width[0]} utterances and {width[1]} speakers")


WRITERS: dict[str, Callable[[Any, Scores, Iterable[NDArray[np.float32]] | None], None]] = {
    NPZ: _write_npz,
    PARQUET: _write_parquet,
}
READERS: dict[str, Callable[[Path], Scores]] = {NPZ: _read_npz, PARQUET: _read_parquet}
