"""List the commands: the options of each, and the function that runs it.

A command is a dataclass of `spkid_dist.config` and a function that is imported when it runs, so that sharding loads no torch.
`spkid_dist.commands.cli` is what starts them.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import tyro

from shards.errors import EXIT_DONE, EXIT_FAILED, InputError, SpkidError, Stopped
from spkid_dist import config as configs
from spkid_dist.process.versions import installed_version

# command: (its options, the module and the function that run it)
COMMANDS: dict[str, tuple[type[Any], str, str]] = {
    "shard": (configs.ShardConfig, "spkid_dist.commands.shard", "shard"),
    "verify": (configs.VerifyConfig, "spkid_dist.commands.check", "verify"),
    "index": (configs.IndexConfig, "spkid_dist.commands.check", "index"),
    "merge": (configs.MergeConfig, "spkid_dist.commands.shard", "merge"),
    "info": (configs.InfoConfig, "spkid_dist.commands.info", "info"),
    "train": (configs.TrainConfig, "spkid_dist.train", "train_model"),
    "score": (configs.ScoreConfig, "spkid_dist.score", "score_utterances"),
    "export": (configs.ExportConfig, "spkid_dist.export", "export_model"),
    "results": (configs.ResultsConfig, "spkid_dist.commands.results", "results"),
    "doctor": (configs.DoctorConfig, "spkid_dist.commands.doctor", "doctor"),
    "bench": (configs.BenchConfig, "spkid_dist.bench.command", "bench"),
    "simulate": (configs.SimulateConfig, "spkid_dist.simulate.command", "simulate"),
    "demo": (configs.DemoConfig, "spkid_dist.commands.demo", "demo"),
}
STYLE = (tyro.conf.FlagCreatePairsOff,)


def run_arguments(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` begin with, and return the exit code."""
    if list(arguments) in (["--version"], ["version"]):
        print(f"spkid-dist {installed_version('spkid-dist')}")
        return EXIT_DONE
    if list(arguments[:1]) == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    return _parse_and_run(lambda: _parse_any(arguments))


def run_flags(command: str) -> int:
    """Run `command` with the process's arguments as its flags, and return the exit code."""
    options, prog = COMMANDS[command][0], f"spkid {command}"
    return _parse_and_run(lambda: tyro.cli(options, prog=prog, config=STYLE, use_underscores=True))


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


def _parse_and_run(parse: Callable[[], Any]) -> int:
    try:
        config = parse()
        module, function = next((module, run) for options, module, run in COMMANDS.values() if type(config) is options)
        getattr(import_module(module), function)(config)
    except SpkidError as error:
        return _report(error)
    except MemoryError as error:
        return _report(InputError(f"not enough memory ({error}); give the machine more, or the command less at a time"))
    except BrokenPipeError:
        return EXIT_FAILED  # whoever read our output has left, of --help or of a long table
    except OSError as error:
        return _report(InputError(str(error)))
    return EXIT_DONE


def _report(error: SpkidError) -> int:
    """Say what went wrong, unless another process or the log has said so; returns the exit code."""
    said_by_another = error.everywhere and os.environ.get("RANK", "0") != "0"
    said_in_log = isinstance(error, Stopped) and error.is_said
    if not (said_by_another or said_in_log):
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"spkid: {'' if isinstance(error, Stopped) else 'error: '}{error}", file=sys.stderr)
    return error.exit_code
