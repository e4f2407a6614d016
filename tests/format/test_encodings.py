"""Lists, tables and maps in UTF-16, as Windows and spreadsheets write them: one line that says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import InputError, read_list
from shards.corpus import read_speakers
from shards.listing import ListFile
from shards.speakers import speaker_by_component, speaker_by_tsv, speaker_by_utt2spk

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_list, "X/ana/utt0\nX/josé/utt1\n"),
        (lambda path: ListFile(path, speaker_by_component(), 0), "X/ana/utt0\nX/josé/utt1\n"),
        (speaker_by_tsv, "utt0\tana\n"),
        (speaker_by_utt2spk, "utt0 ana\n"),
        (read_speakers, '{"ana": 0}'),
    ],
)
def test_a_text_in_utf16_is_named_so(tmp_path: Path, read: Callable[[Path], Any], text: str, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_text(text, encoding=encoding)
    with pytest.raises(
        InputError, match=r"text: .*must be UTF-8 text; it seems to be UTF-16: save it as UTF-8, such as by"
    ):
        read(path)


def test_a_mark_of_utf8_at_the_beginning_is_no_part_of_the_list(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("X/ana/utt0\n", encoding="utf-8-sig")
    assert read_list(path)[0].key == "X/ana/utt0"
    path.write_text('{"ana": 0}', encoding="utf-8-sig")
    assert read_speakers(path) == ["ana"]
