"""The command `spkid identify`: say who speaks in each file, as text, as a table, or as JSON.

A file that can't be read has a line on standard error at its place, and the others are answered: of a thousand recordings one
is always empty. The exit code is 1 then.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from shards.errors import InputError, UsageError
from shards.plaintext import printable
from spkid_dist.config import IdentifyConfig
from spkid_dist.scoring.decisions import UNKNOWN_WORD
from spkid_dist.scoring.identification import Candidate, Identification, Model, load_model
from spkid_dist.scoring.recordings import STANDARD_INPUT
from spkid_dist.trained import OPTIONS_NAME
from spkid_dist.trainedfolder import WEIGHTS

ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
COLUMNS = ("file", "speaker", "confidence", "score", "margin", "windows", "is_short")
RANKED_COLUMNS = ("speaker", "confidence", "score")  # of each candidate, numbered from 1


def identify(config: IdentifyConfig) -> None:
    """Print who speaks in each file, in the files' order.

    Raises:
        InputError: the model can't be opened, or a file can't be read; the other files are answered then.
        UsageError: no file is given and standard input is a terminal; no model is given, or several; or a library that the
            files need is not installed.
    """
    files = config.files or (STANDARD_INPUT,)
    if STANDARD_INPUT in files and (sys.stdin is None or sys.stdin.isatty()):
        what = "no file is given" if not config.files else "-"
        raise UsageError(f"{what}, and standard input is a terminal; give files, or pipe a recording in")
    _check_places(config)
    model = load_model(config.model, max_frames=config.max_frames)
    for line in model.remarks:
        _say(line)
    if model.calibration is None:
        _say(
            f"{model.weights}: no calibration lies beside these weights, so there are scores and no confidence; run spkid "
            f"calibrate --model {config.model} on a list of held-out recordings"
        )
    elif model.calibration.threshold is not None and UNKNOWN_WORD in model.speakers and not config.json:
        raise InputError(
            f"{config.model}: the model has a speaker named {UNKNOWN_WORD!r}, the word for files below the threshold; give "
            "--json, where such files have null"
        )
    show = _printer(config, model)
    errors = []
    for file, answer in zip(files, model.answers(files, top=config.top), strict=True):
        if isinstance(answer, InputError):
            errors.append(answer)
            if len(files) > 1:
                _say(f"error: {answer}")
        show(file, answer)
    if errors:
        error = errors[0] if len(files) == 1 else InputError(f"{len(errors)} of {len(files)} files have no answer")
        error.is_said = len(files) > 1
        raise error


def _check_places(config: IdentifyConfig) -> None:
    """Raise UsageError where a recording stands in the place of the model, or a second model among the recordings."""
    model = config.model
    if model.is_file() and model.suffix != WEIGHTS:
        raise UsageError(
            f"{model}: is a file, but the folder of a training comes first; give that and then the files, such as spkid "
            f"identify ckpt {model}"
        )
    another = next((file for file in config.files if (Path(file) / OPTIONS_NAME).is_file()), None)
    if another is not None:
        raise UsageError(
            f"{another}: is the folder of a training, as {model} is; identify takes one model: give one of them"
        )


def _printer(config: IdentifyConfig, model: Model) -> Callable[[str, Identification | InputError], None]:
    """What prints one answer."""
    if config.json:
        return _print_json
    if config.tsv:
        shown = min(config.top, len(model.speakers))
        more = [f"{name}_{rank}" for rank in range(1, shown + 1) for name in RANKED_COLUMNS]
        print("\t".join((*COLUMNS, *more)), flush=True)
        return _print_row
    return _print_text


def _print_json(file: str, answer: Identification | InputError) -> None:
    facts = {"error": str(answer)} if isinstance(answer, InputError) else asdict(answer)
    print(json.dumps({"file": file, **facts}), flush=True)


def _print_row(file: str, answer: Identification | InputError) -> None:
    if isinstance(answer, InputError):
        return
    # What is unknown has no confidence and no score of its own: those are the candidates', who stand behind it.
    name, of_speaker = UNKNOWN_WORD, ["", ""]
    if answer.speaker is not None:
        name, of_speaker = _escaped(answer.speaker), [_number(answer.confidence), _number(answer.score)]
    row = [_escaped(file), name, *of_speaker, _number(answer.margin), str(answer.windows), str(answer.is_short).lower()]
    for one in answer.top:
        row += [_escaped(one.speaker), _number(one.confidence), _number(one.score)]
    print("\t".join(row), flush=True)


def _print_text(file: str, answer: Identification | InputError) -> None:
    if isinstance(answer, InputError):
        return
    best, *others = answer.top
    unsure = "; unreliable, as the file is shorter than a window" if answer.is_short else ""
    if answer.speaker is None:
        nearest = ", ".join(map(_candidate, answer.top))
        print(f"{_escaped(file)}: {UNKNOWN_WORD} (nearest: {nearest}{unsure})", flush=True)
        return
    if best.confidence is not None:
        sure = f"confidence {best.confidence:.3f}"
    else:
        margin = "" if answer.margin is None else f", margin {answer.margin:.3f}"
        sure = f"mean log-probability {best.score:.3f}{margin}"
    more = "; then " + ", ".join(map(_candidate, others)) if others else ""
    print(f"{_escaped(file)}: {_escaped(answer.speaker)} ({sure}{more}{unsure})", flush=True)


def _candidate(one: Candidate) -> str:
    return f"{_escaped(one.speaker)} {one.score if one.confidence is None else one.confidence:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _escaped(text: str) -> str:
    return printable(text.translate(ESCAPES))


def _say(text: str) -> None:
    print(f"spkid: {text}", file=sys.stderr, flush=True)
