"""Read trial lists: pairs of a claimed speaker, or an enrolment, and an utterance, each a target trial or not.

Three forms are known, and a file has one of them in all its lines:

    Kaldi:       SPEAKER UTTERANCE target|nontarget
    VoxCeleb:    1|0 ENROLMENT UTTERANCE
    label last:  SPEAKER UTTERANCE 1|0

A line with 1 or 0 at both ends is of the form of the first line that has it at one end only.
Words are separated by ASCII white space, lines end as in `shards.lines`, blank lines do not count, and there are no comments.
Names are kept once and trials are numbers, 13 bytes each: 10^7 trials fit anywhere.

Shapes: N trials.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import InputError
from shards.lines import read_chunks
from shards.names import one_form

KALDI, VOXCELEB, LABEL_LAST = "kaldi", "voxceleb", "label_last"
_WORDS, _DIGITS = {b"target": True, b"nontarget": False}, {b"1": True, b"0": False}
LABELS = {KALDI: _WORDS, VOXCELEB: _DIGITS, LABEL_LAST: _DIGITS}
LINE_OF = {
    KALDI: "SPEAKER UTTERANCE target|nontarget",
    VOXCELEB: "1|0 ENROLMENT UTTERANCE",
    LABEL_LAST: "SPEAKER UTTERANCE 1|0",
}
# Columns of claim, utterance and label.
COLUMNS = {KALDI: (0, 1, 2), VOXCELEB: (1, 2, 0), LABEL_LAST: (0, 1, 2)}
FORMS = f"{LINE_OF[KALDI]}, or {LINE_OF[VOXCELEB]}, or {LINE_OF[LABEL_LAST]}"
REMEDY = f"give a file with lines {FORMS}"
AUDIO_ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".sph")  # that VoxCeleb's lists have, and keys have not
_IS_WHITE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))


@dataclass(frozen=True, kw_only=True)
class TrialList:
    """N trials of a file, in its order.

    Attributes:
        path: the file.
        form: ``kaldi``, ``voxceleb`` or ``label_last``.
        claims: names of speakers or enrolments, each once.
        utterances: names of utterances, each once.
        claim: index into `claims`, (N,) int32.
        utterance: index into `utterances`, (N,) int32.
        target: whether the claim is true, (N,) bool.
        lines: the trials' lines in the file, from 1, (N,) int32.
        repeated: trials that stand in an earlier line, too, with the same label.
    """

    path: Path
    form: str
    claims: list[str]
    utterances: list[str]
    claim: NDArray[np.int32]
    utterance: NDArray[np.int32]
    target: NDArray[np.bool_]
    lines: NDArray[np.int32]
    repeated: int

    def __len__(self) -> int:
        return len(self.claim)

    def resolve_claims(self, known: Mapping[str, int], of_what: str, remedy: str) -> NDArray[np.int64]:
        """The index that `known` has for each of `claims`, (len(claims),).

        Raises:
            InputError: a claim is not known; the message has its line, and how many more there are.
        """
        word = "enrolment" if self.form == VOXCELEB else "speaker"
        return self._resolve(self.claims, self.claim, known, (word, of_what, remedy))

    def resolve_utterances(self, known: Mapping[str, int], of_what: str, remedy: str) -> NDArray[np.int64]:
        """The index that `known` has for each of `utterances`, (len(utterances),). Raises InputError as `resolve_claims`."""
        return self._resolve(self.utterances, self.utterance, known, ("utterance", of_what, remedy))

    def check_utterances(self, missing: Sequence[int], of_what: str, remedy: str) -> None:
        """Raise InputError where some of `utterances`, by their indices `missing`, are not in `of_what`."""
        self._check(self.utterances, self.utterance, missing, ("utterance", of_what, remedy))

    def line_of_utterance(self, index: int) -> int:
        """The first line that has the utterance of this index."""
        return int(self.lines[np.argmax(self.utterance == index)])

    def _resolve(
        self, names: list[str], used: NDArray[np.int32], known: Mapping[str, int], words: tuple[str, str, str]
    ) -> NDArray[np.int64]:
        found = np.array([_find(name, known) for name in names], np.int64)
        self._check(names, used, np.flatnonzero(found < 0).tolist(), words)
        return found

    def _check(
        self, names: list[str], used: NDArray[np.int32], missing: Sequence[int], words: tuple[str, str, str]
    ) -> None:
        if not missing:
            return
        word, of_what, remedy = words
        line = self.lines[np.argmax(used == missing[0])]  # names are numbered in the order of their lines
        more = f" ({len(missing)} of the {len(names)} {'claimed ' if word == 'speaker' else ''}{word}s)"
        raise InputError(f"{self.path}:{line}: {word} {names[missing[0]]!r} is not {of_what}{more}; {remedy}")


def _find(name: str, known: Mapping[str, int]) -> int:
    """The index of a name, or of the name without the ending of an audio file; -1 where there is none."""
    found = known.get(name, known.get(one_form(name), -1))
    if found < 0 and name.lower().endswith(AUDIO_ENDINGS):
        found = known.get(name.rpartition(".")[0], -1)
    return found


def read_trials(path: Path) -> TrialList:
    """Read a trial list, a few MB at a time.

    Raises:
        InputError: it is missing, empty or not UTF-8; a line is of no form, or of another form than those before it; all lines
            may be of two forms; or two lines say of the same trial that it is a target, and that it is not.
    """
    claims, utterances = _Names(), _Names()
    form, line = "", 1
    parts: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], NDArray[np.int32]]] = []
    waiting: list[tuple[list[bytes], NDArray[np.int32]]] = []  # pieces whose form no line tells yet
    for chunk in read_chunks(path, "the trial list", REMEDY):
        words, lines, num_lines = _split(path, chunk, line)
        line += num_lines
        if not len(lines):
            continue
        waiting.append((words, lines))
        form = form or _form_of(path, words, lines)
        for words, lines in waiting if form else ():
            claimed, spoken, labels = (words[column::3] for column in COLUMNS[form])
            targets = _targets(path, form, labels, lines, words)
            parts.append((claims.numbers(claimed), utterances.numbers(spoken), targets, lines))
        waiting = [] if form else waiting
    if waiting:
        words, lines = waiting[0]
        raise InputError(
            f"{path}:{lines[0]}: {_shown(b' '.join(words[:3]).decode())}: here and in all other lines the first word or the "
            f"last may be the label; give lines {LINE_OF[KALDI]}"
        )
    if not parts:
        raise InputError(f"{path}: the trial list is empty; {REMEDY}")
    claim, utterance, target, lines = map(np.concatenate, zip(*parts, strict=True))
    return TrialList(
        path=path,
        form=form,
        claims=claims.decoded(),
        utterances=utterances.decoded(),
        claim=claim,
        utterance=utterance,
        target=target,
        lines=lines,
        repeated=_count_repeated(path, claim.astype(np.int64) * len(utterances.known) + utterance, target, lines),
    )


class _Names:
    """Names as UTF-8, numbered in the order in which they are first seen."""

    def __init__(self) -> None:
        self.known: dict[bytes, int] = {}

    def numbers(self, names: Iterable[bytes]) -> NDArray[np.int32]:
        """The names' numbers."""
        known = self.known
        return np.array([known.setdefault(name, len(known)) for name in names], np.int32)

    def decoded(self) -> list[str]:
        """All names, in the order of their numbers."""
        return [name.decode() for name in self.known]


def _split(path: Path, chunk: bytes, first_line: int) -> tuple[list[bytes], NDArray[np.int32], int]:
    """The words of a piece's lines, three a line; the lines' numbers; and how many lines the piece has.

    Raises:
        InputError: a line that is not blank has more or fewer than three words.
    """
    data = np.frombuffer(chunk, np.uint8)
    white = _IS_WHITE[data]
    begins = ~white
    begins[1:] &= white[:-1]
    ends = (data == ord("\n")) | (data == ord("\r"))
    ends[:-1] &= (data[:-1] != ord("\r")) | (data[1:] != ord("\n"))  # of a CRLF, the second
    line_of_word = np.cumsum(ends, dtype=np.int32)[begins]
    counts = np.bincount(line_of_word) if len(line_of_word) else np.zeros(0, np.int64)
    wrong = np.flatnonzero((counts != 0) & (counts != 3))
    if len(wrong):
        text = b" ".join(word for word, line in zip(chunk.split(), line_of_word, strict=True) if line == wrong[0])
        raise InputError(
            f"{path}:{first_line + wrong[0]}: {counts[wrong[0]]} words in {_shown(text.decode())}, expected 3: "
            f"{FORMS}; correct the line"
        )
    return chunk.split(), line_of_word[::3] + np.int32(first_line), int(ends.sum())


def _form_of(path: Path, words: Sequence[bytes], lines: NDArray[np.int32]) -> str:
    """The form of the first line that has one only; "" where each may have two. Raises InputError where one has none."""
    for number, (first, last) in enumerate(zip(words[::3], words[2::3], strict=True)):
        if last in _WORDS:
            return KALDI
        if (first in _DIGITS) != (last in _DIGITS):
            return VOXCELEB if first in _DIGITS else LABEL_LAST
        if first not in _DIGITS:
            shown = _shown(b" ".join(words[3 * number : 3 * number + 3]).decode())
            raise InputError(f"{path}:{lines[number]}: {shown} is no trial; expected {FORMS}; correct the line")
    return ""


def _targets(
    path: Path, form: str, labels: Sequence[bytes], lines: NDArray[np.int32], words: Sequence[bytes]
) -> NDArray[np.bool_]:
    """Whether each trial is a target. Raises InputError where a line has none of the form's labels."""
    known = LABELS[form]
    found = [known.get(label) for label in labels]
    if None in found:
        at = found.index(None)
        line = [word.decode() for word in words[3 * at : 3 * at + 3]]
        others = [other for other in LABELS if line[COLUMNS[other][2]].encode() in LABELS[other]]
        why = f"has the form {LINE_OF[others[0]]}, but" if others else "is no trial;"
        raise InputError(
            f"{path}:{lines[at]}: {_shown(' '.join(line))} {why} the lines before it {LINE_OF[form]}; give one form only"
        )
    return np.array(found, np.bool_)


def _count_repeated(path: Path, pairs: NDArray[np.int64], target: NDArray[np.bool_], lines: NDArray[np.int32]) -> int:
    """How many trials stand in an earlier line too. Raises InputError where two of the same pair have different labels."""
    order = np.argsort(pairs, kind="stable")
    again = pairs[order[1:]] == pairs[order[:-1]]
    differs = np.flatnonzero(again & (target[order[1:]] != target[order[:-1]]))
    if len(differs):
        first, second = sorted(lines[order[differs[0] : differs[0] + 2]].tolist())
        raise InputError(
            f"{path}:{second}: line {first} has the same trial with the opposite label; remove one of the lines"
        )
    return int(again.sum())


def _shown(text: str, most: int = 120) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}...")
