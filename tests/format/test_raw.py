"""Files of float32 without a header, as SPTK writes them."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from source_checks import FRAMES, error_of, utterance

from shards import FmatrixSource, ShardDataset, UsageError
from shards.sources.fmatrix import raw_features, write_fmatrix
from shards.sources.limits import UtteranceLimit
from spkid_dist.commands.shard import shard
from spkid_dist.config import ShardConfig

pytestmark = pytest.mark.fast
SPTK = Path("/usr/libexec/sptk/bin")  # where Debian's package has SPTK's commands
PROGRAMS = os.pathsep.join([os.environ["PATH"], str(SPTK)])
needs_sptk = pytest.mark.skipif(not shutil.which("x2x", path=PROGRAMS), reason="SPTK is not installed")


def run(command: str) -> None:
    subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"PATH": PROGRAMS})


def test_values_without_a_header_are_read_by_their_number_per_frame(tmp_path: Path) -> None:
    FRAMES.astype("<f4").tofile(tmp_path / "a.mgc")
    np.testing.assert_array_equal(FmatrixSource(tmp_path, "mgc", num_features=5).load(utterance("a")), FRAMES)


def test_what_htk_io_writes_is_read(tmp_path: Path) -> None:
    vecseq = pytest.importorskip("htk_io.vecseq", reason="htk-io is not installed")
    vecseq.VecSeqIo(5).writeFile(tmp_path / "a.mgc", FRAMES)
    np.testing.assert_array_equal(FmatrixSource(tmp_path, "mgc", num_features=5).load(utterance("a")), FRAMES)


def test_a_file_of_no_whole_number_of_frames_is_an_error(tmp_path: Path) -> None:
    FRAMES.astype("<f4").tofile(tmp_path / "a.mgc")
    assert error_of(FmatrixSource(tmp_path, "mgc", num_features=6).load, utterance("a")) == (
        f"{tmp_path}/a.mgc: 260 bytes are no whole number of frames of 6 float32 values (24 bytes): it is truncated, or "
        "--num_features is another number"
    )
    limited = FmatrixSource(tmp_path, "mgc", UtteranceLimit(12), 5)
    assert "13 frames; expected at most 12" in error_of(limited.load, utterance("a"))


@needs_sptk
def test_the_command_in_the_message_adds_a_header_to_what_sptk_wrote(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.txt", FRAMES)
    run(f"x2x +af {tmp_path}/a.txt > {tmp_path}/a.mgc")
    text = error_of(FmatrixSource(tmp_path, "mgc").load, utterance("a"))
    assert f"{tmp_path}/a.mgc: not an fmatrix file: it seems to be 65 float32 values without a header, as SPTK" in text
    command = text.partition("add a header: ")[2].replace("D=25", "D=5").replace("NEW", f"{tmp_path}/a.mcp")
    run(command)
    np.testing.assert_allclose(FmatrixSource(tmp_path, "mcp").load(utterance("a")), FRAMES, rtol=1e-6)
    np.testing.assert_allclose(FmatrixSource(tmp_path, "mgc", num_features=5).load(utterance("a")), FRAMES, rtol=1e-6)


def test_a_damaged_fmatrix_file_is_not_taken_for_one_without_a_header(tmp_path: Path) -> None:
    write_fmatrix(tmp_path / "a.mcp", FRAMES)
    data = (tmp_path / "a.mcp").read_bytes()
    (tmp_path / "a.mcp").write_bytes(data[:-4])
    assert "truncated" in error_of(FmatrixSource(tmp_path).load, utterance("a"))


def test_the_number_of_features_is_kept_with_the_dataset(tmp_path: Path) -> None:
    for name in "ab":
        FRAMES.astype("<f4").tofile(tmp_path / f"{name}.mgc")
    (tmp_path / "list").write_text("a\nb\n")
    flags: dict[str, Any] = {"db_path": tmp_path, "list_file": tmp_path / "list", "spk2idx": tmp_path / "map.json"}
    shard(ShardConfig(out=str(tmp_path / "out"), ext="mgc", num_features=5, speaker_component=1, **flags))
    manifest = ShardDataset(tmp_path / "out").manifest
    assert manifest.source["num_features"] == 5
    assert manifest.num_frames == 26


@pytest.mark.parametrize("value", [0, 65_537, True, 2.0, "5"])
def test_a_damaged_number_of_features_is_an_error(value: Any) -> None:
    assert error_of(raw_features, {"num_features": value}).startswith("the source in train.opts or the manifest has ")


@pytest.mark.parametrize("flags", [{"source": "npy", "num_features": 5}, {"num_features": 65_537}, {"num_features": 0}])
def test_num_features_goes_with_fmatrix_files(flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^--num_features \d+: expected 1 "):
        ShardConfig(out="o", **flags)
