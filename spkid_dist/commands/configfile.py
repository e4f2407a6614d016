"""Read flags from a file: ``--config FILE`` of the commands that have many.

The file is YAML, with flags by their names, and nested ones as mappings; or the `train.opts` of a former training. It becomes
words of a command line, so each value is checked as a flag is. Words that a user gives take the place of those of the file.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from reprlib import Repr
from typing import Any, ClassVar

import yaml

from shards.contentdigest import DIGEST_NAME
from shards.errors import InputError, UsageError
from shards.files import read_text
from shards.plaintext import is_masked
from shards.sources.own import is_class_name
from spkid_dist.commands.flags import CONFIG_COMMANDS, Flag, flags_of
from spkid_dist.commands.help import near_flag

# What train.opts has besides options: `spkid_dist.training.job.TrainingData.options`, the training's name, the digest.
NO_OPTIONS = frozenset(
    {"input_dim", "num_spks", "speakers", "source", "tr_fingerprint", "tr_keys", "training_id", DIGEST_NAME}
)
# What train.opts says of its own run: the permission to delete a folder, and the checkpoint it went on from, end with that run.
OF_ONE_RUN = frozenset({"overwrite", "resume"})
MOST_BYTES = 64_000_000  # a train.opts has the names of all speakers
EXPECTED = "expected lines such as `lr: 0.001`"
WITH_MEANING = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:merge")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Values as they are written, but for true, false and null; each key once.

    A speaker `0010` is no octal number then, `1:30` no number of seconds, and `mixed_precision: no` is a word.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [
            (tag, pattern)
            for tag, pattern in resolvers
            if tag in WITH_MEANING and not (tag.endswith("bool") and first not in "tTfF")
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        keys = [key.value for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def with_config(command: str, options: type[Any], words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words of a command with those of its --config behind them, and that file; None where there is none.

    Raises:
        InputError: the file can't be read, or is not YAML.
        UsageError: it has a flag that the command has not, or a value that no flag takes; --config twice or without a file.
    """
    if command not in CONFIG_COMMANDS:
        return list(words), None
    path, rest = _take_config(list(words))
    if path is None:
        return rest, None
    given = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")}
    return [*rest, *_words_of(path, command, flags_of(options), given)], path


def _take_config(words: list[str]) -> tuple[Path | None, list[str]]:
    paths, rest = [], []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        found = value if equals else next(remaining, "")
        if not found:
            raise UsageError("--config: expected a file, such as --config recipe.yaml")
        paths.append(Path(found))
    if len(paths) > 1:
        raise UsageError(f"--config is given {len(paths)} times; put all flags into one file")
    return (paths[0] if paths else None), rest


def _words_of(path: Path, command: str, flags: Sequence[Flag], given: set[str]) -> Iterator[str]:
    known = {flag.name: flag for flag in flags}
    groups = {flag.name.partition(".")[0] for flag in flags if "." in flag.name}
    seen = set()
    for name, value in _entries(path, _read(path, command), groups):
        opposite = known.get(f"no_{name}")  # of a switch that is on by default
        decided = opposite.name if opposite else name
        if decided in seen:
            raise UsageError(f"{path}: {name} stands there twice")
        seen.add(decided)
        if name in known:
            if name not in given:
                yield from _words(path, known[name], value)
        elif opposite is not None and isinstance(value, bool):
            if not value and opposite.name not in given:
                yield f"--{opposite.name}"
        else:
            raise UsageError(f"{path}: {name}: no such flag of spkid {command}{near_flag(name, flags)}")


def _read(path: Path, command: str) -> Mapping[Any, Any]:
    try:
        found = yaml.load(read_text(path, "this --config file", EXPECTED, MOST_BYTES), _Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML: {what}; {EXPECTED}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds {_kind(found)}, expected flags by their names, such as `lr: 0.001`")
    if command == "train" and NO_OPTIONS & found.keys():
        return {name: value for name, value in found.items() if name not in NO_OPTIONS | OF_ONE_RUN}
    return found


def _entries(path: Path, found: Mapping[Any, Any], groups: Set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The flags and their values; of the mappings below `groups` as `features.kind`."""
    for key, value in found.items():
        name = f"{prefix}{key}".replace("-", "_")
        if name not in groups:
            yield name, value
        elif isinstance(value, dict):
            yield from _entries(path, value, set(), f"{name}.")
        elif value is not None:
            raise UsageError(
                f"{path}: {name}: {_shown(value)}: expected flags below it, as in `{name}: {{NAME: VALUE}}`"
            )


def _words(path: Path, flag: Flag, value: Any) -> list[str]:
    if value is None:
        return []
    if not flag.placeholder:
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {flag.name}: {_shown(value)}: expected true or false")
        return [f"--{flag.name}"] if value else []
    takes_several = flag.repeated or flag.placeholder.endswith("...")
    values = value if isinstance(value, list) and takes_several else [value]
    if not values or not all(isinstance(one, str) for one in values):
        raise UsageError(f"{path}: {flag.name}: {_shown(value)}: expected {flag.placeholder}")
    if any(map(is_masked, values)):
        raise UsageError(
            f"{path}: {flag.name}: {value!r}: a training writes no passwords, keys and queries of URLs and commands; give the "
            f"whole place by --{flag.name}"
        )
    if flag.name == "source" and any(map(is_class_name, values)):
        raise UsageError(
            f"{path}: {flag.name}: {value!r}: a file may name no class, whose code would run; give it by --{flag.name}"
        )
    if len(values) == 1 or flag.repeated:
        return [f"--{flag.name}={one}" for one in values]
    if any(one.startswith("-") for one in values):  # it would be a flag itself
        raise UsageError(f"{path}: {flag.name}: {_shown(value)}: among several values none may begin with a dash")
    return [f"--{flag.name}", *values]


def _shown(value: Any) -> str:
    """The beginning of a value: aliases of YAML make values that are endless when they are written out."""
    written = Repr()
    written.maxstring = written.maxother = 60
    return written.repr(value)


def _kind(found: Any) -> str:
    return {list: "a list", type(None): "nothing"}.get(type(found), "one value")
