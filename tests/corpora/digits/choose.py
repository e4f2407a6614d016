"""Choose this small corpus out of the Free Spoken Digit Dataset, by a fixed rule.

    python tests/corpora/digits/choose.py RECORDINGS [--features FOLDER]

RECORDINGS is the folder `recordings/` of the original dataset, with files DIGIT_SPEAKER_NUMBER.wav. FOLDER has the
features of these recordings as FSDD/SPEAKER/DIGIT_SPEAKER_NUMBER.mcp. The files are copied to `wav/` and `mcp/` beside
this program, unchanged. The lists and the speaker map are written to `cfg/`.

The rule: of each digit of each speaker, the test recording is number 0, and the training recordings are numbers 5, 6
and 7. The original dataset uses numbers 0 to 4 for testing and the others for training, so its split is kept.
"""

import argparse
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
SPEAKERS = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
NUMBERS = {"all.train": (5, 6, 7), "all.test": (0,)}


def chosen(numbers: tuple[int, ...]) -> list[tuple[str, str]]:
    """The (speaker, name) of each recording with one of these numbers."""
    return [
        (speaker, f"{digit}_{speaker}_{number}") for speaker in SPEAKERS for digit in range(10) for number in numbers
    ]


def copy(source: Path, target: Path) -> None:
    """Copy the bytes of a file; its folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def main() -> None:
    """Copy the chosen files, and write the lists and the speaker map."""
    parser = argparse.ArgumentParser(description="Choose the small corpus out of the Free Spoken Digit Dataset.")
    parser.add_argument("recordings", type=Path, help="folder of the original wav files")
    parser.add_argument("--features", type=Path, help="folder of feature files of these recordings")
    arguments = parser.parse_args()
    (HERE / "cfg").mkdir(exist_ok=True)
    for list_name, numbers in NUMBERS.items():
        recordings = chosen(numbers)
        for speaker, name in recordings:
            key = f"FSDD/{speaker}/{name}"
            copy(arguments.recordings / f"{name}.wav", HERE / "wav" / f"{key}.wav")
            if arguments.features is not None:
                copy(arguments.features / f"{key}.mcp", HERE / "mcp" / f"{key}.mcp")
        lines = [f"FSDD/{speaker}/{name}\n" for speaker, name in recordings]
        (HERE / "cfg" / list_name).write_text("".join(lines))
    classes = {speaker: index for index, speaker in enumerate(SPEAKERS)}
    (HERE / "cfg/spk2idx.json").write_text(json.dumps(classes, indent=2) + "\n")


if __name__ == "__main__":
    main()
