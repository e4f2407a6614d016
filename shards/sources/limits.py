"""Bound what an utterance may take of memory: of its frames and features, whatever its file says of itself.

A few bytes can stand for billions of values: a header of eight bytes, packed zeros, an hour of silence. So a source compares
what a header says with the limit and with the file's size, and what it unpacks with the limit piece by piece.
"""

from dataclasses import dataclass

from shards.errors import InputError, UsageError

MAX_FRAMES = 1_000_000  # 2.8 hours at 100 frames a second
MOST_MAX_FRAMES = 2**30  # a block counts its frames in int32
MAX_FEATURES = 65_536
VALUES_PER_FRAME = 64  # an utterance of fewer frames may have more features
WIDEST_BYTES = 8  # of a value, as float64
HEADER_BYTES = 65_536  # more than any header of ours
REMEDY = "cut it into shorter utterances, leave it out"


@dataclass(frozen=True)
class UtteranceLimit:
    """The largest utterance that is read: its frames, and 64 values for each of `max_frames`, however they are shaped."""

    max_frames: int = MAX_FRAMES

    def __post_init__(self) -> None:
        """Check the number; raises UsageError."""
        if not 1 <= self.max_frames <= MOST_MAX_FRAMES:
            raise UsageError(f"--max_frames {self.max_frames}: expected 1 to {MOST_MAX_FRAMES}")

    @property
    def max_values(self) -> int:
        """Most frames times features."""
        return VALUES_PER_FRAME * self.max_frames

    @property
    def max_file_bytes(self) -> int:
        """Most bytes of a file that holds the values as they are."""
        return WIDEST_BYTES * self.max_values + HEADER_BYTES

    def check(self, num_frames: int, num_features: int, where: str) -> None:
        """Raise InputError where an utterance has too many frames or features; `where` it is, is for the message."""
        if num_features > MAX_FEATURES:
            raise InputError(
                f"{where}: {num_features} features per frame; expected at most {MAX_FEATURES}: is it a file of this kind?"
            )
        if num_frames > self.max_frames:
            raise InputError(
                f"{where}: {num_frames} frames; expected at most {self.max_frames}: {self._remedy(num_frames)}"
            )
        if num_frames * num_features > self.max_values:
            needed = -(-num_frames * num_features // VALUES_PER_FRAME)
            raise InputError(
                f"{where}: {num_frames} frames x {num_features} features; expected at most {self.max_values} values, "
                f"{VALUES_PER_FRAME} times --max_frames: {self._remedy(needed)}"
            )

    def too_long(self, where: str, found: str) -> InputError:
        """The error of a file that has more than the limit, of which no more was read than that."""
        return InputError(
            f"{where}: {found}; expected at most {self.max_frames} frames: {REMEDY}, or give a larger --max_frames"
        )

    def _remedy(self, max_frames: int) -> str:
        return f"{REMEDY}, or give --max_frames {max_frames}" if max_frames <= MOST_MAX_FRAMES else REMEDY


DEFAULT_LIMIT = UtteranceLimit()
