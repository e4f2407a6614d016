"""The command line: ``spkid COMMAND [flags]``.

Each command is a dataclass of `spkid_dist.config` (those of `bench` and `simulate`: of their packages) and a function that is
imported when it runs: sharding loads no torch.
Exit codes: 0 done, 1 failed, 2 used wrongly, 75 stopped when told to and to be continued, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import tyro

from shards.errors import EXIT_DONE, EXIT_FAILED, InputError, SpkidError, Stopped
from spkid_dist import config as configs
from spkid_dist.bench.config import BenchConfig
from spkid_dist.simulation.config import SimulateConfig

EXIT_INTERRUPTED = 130

# command: (its options, the module and the function that run it)
COMMANDS: dict[str, tuple[type[Any], str, str]] = {
    "shard": (configs.ShardConfig, "spkid_dist.sharding", "shard"),
    "verify": (configs.VerifyConfig, "spkid_dist.verifying", "verify"),
    "index": (configs.IndexConfig, "spkid_dist.indexing", "index"),
    "merge": (configs.MergeConfig, "spkid_dist.sharding", "merge"),
    "info": (configs.InfoConfig, "spkid_dist.info", "info"),
    "train": (configs.TrainConfig, "spkid_dist.train", "train"),
    "score": (configs.ScoreConfig, "spkid_dist.score", "score"),
    "export": (configs.ExportConfig, "spkid_dist.export", "export"),
    "results": (configs.ResultsConfig, "spkid_dist.results", "results"),
    "doctor": (configs.DoctorConfig, "spkid_dist.doctor", "doctor"),
    "bench": (BenchConfig, "spkid_dist.bench.command", "bench"),
    "simulate": (SimulateConfig, "spkid_dist.simulation.command", "simulate"),
    "demo": (configs.DemoConfig, "spkid_dist.demo", "demo"),
}
STYLE = (tyro.conf.FlagCreatePairsOff,)


def main() -> None:
    """The entry of the console command ``spkid``."""
    config = _parse(lambda: _parse_any(sys.argv[1:]))
    command = next(name for name, (options, _, _) in COMMANDS.items() if isinstance(config, options))
    _run(command, config)


def run_command(command: str) -> None:
    """Run one command with the process's arguments as its flags."""
    options = COMMANDS[command][0]
    prog = f"spkid {command}"
    _run(command, _parse(lambda: tyro.cli(options, prog=prog, config=STYLE, use_underscores=True)))


def _parse_any(arguments: Sequence[str]) -> Any:
    commands: dict[str, Callable[..., Any]] = {name: options for name, (options, _, _) in COMMANDS.items()}
    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="spkid",
        description="Speaker identification trained at memory speed.",
        args=arguments,
        config=STYLE,
        use_underscores=True,
    )


def _parse(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except SpkidError as error:
        _fail(error)
    except BrokenPipeError:  # of --help
        _leave_unread()


def _run(command: str, config: Any) -> None:
    _, module, function = COMMANDS[command]
    try:
        getattr(import_module(module), function)(config)
    except SpkidError as error:
        _fail(error)
    except BrokenPipeError:
        _leave_unread()
    except OSError as error:
        _fail(InputError(str(error)))
    except KeyboardInterrupt:
        print("spkid: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(EXIT_DONE)


def _leave_unread() -> NoReturn:
    """Whoever read our output has left; what is still to be flushed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_FAILED)


def _fail(error: SpkidError) -> NoReturn:
    said_by_another = error.everywhere and os.environ.get("RANK", "0") != "0"
    if not (said_by_another or isinstance(error, Stopped)):  # who stops has said so in its log
        print(f"spkid: error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
