"""List the commands: the options of each, and the function that runs it.

A command is a dataclass of `spkid_dist.config` and a function that is imported when it runs, so that sharding loads no torch.
`spkid_dist.commands.cli` is what starts them.
"""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, make_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from shards.errors import EXIT_DONE, EXIT_FAILED, InputError, SpkidError, Stopped, UsageError
from shards.extras import REQUIREMENTS, install_command
from shards.plaintext import printable
from spkid_dist import config as configs
from spkid_dist.commands.configfile import with_config
from spkid_dist.commands.flags import CONFIG_COMMANDS, config_flag
from spkid_dist.commands.help import (
    HELP_WORDS,
    asks_for_help,
    check_command,
    check_flags,
    print_command,
    print_overview,
)
from spkid_dist.commands.parsing import STYLE, parse_flags
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
    "calibrate": (configs.CalibrateConfig, "spkid_dist.commands.calibrate", "calibrate_model"),
    "trials": (configs.TrialsConfig, "spkid_dist.commands.trials", "score_trials"),
    "identify": (configs.IdentifyConfig, "spkid_dist.commands.identify", "identify"),
    "embed": (configs.EmbedConfig, "spkid_dist.commands.embed", "embed_utterances"),
    "export": (configs.ExportConfig, "spkid_dist.export", "export_model"),
    "results": (configs.ResultsConfig, "spkid_dist.commands.results", "results"),
    "report": (configs.ReportConfig, "spkid_dist.commands.report", "report"),
    "doctor": (configs.DoctorConfig, "spkid_dist.commands.doctor", "doctor"),
    "bench": (configs.BenchConfig, "spkid_dist.bench.command", "bench"),
    "simulate": (configs.SimulateConfig, "spkid_dist.simulate.command", "simulate"),
    "demo": (configs.DemoConfig, "spkid_dist.commands.demo", "demo"),
}
TYRO_COMPLETION = "--tyro-print-completion"
COMPLETION_WORDS = ("completion", TYRO_COMPLETION)
SHELLS = ("bash", "zsh", "fish")
TRAIN_MODULES = (
    "accelerate",
    "jinja2",
    "matplotlib",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
)  # of the extra `train`


def run_arguments(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` begin with, and return the exit code."""
    if list(arguments) in (["--version"], ["version"]):
        print(f"spkid-dist {installed_version('spkid-dist')}")
        return EXIT_DONE
    if list(arguments[:1]) == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    return _parse_and_run(lambda: _parse(arguments))


def run_flags(command: str) -> int:
    """Run `command` with the process's arguments as its flags, and return the exit code."""
    return run_arguments([command, *sys.argv[1:]])


def _parse(arguments: Sequence[str]) -> Any:
    """The options of the command that `arguments` begin with; None where they ask for help, which is printed then.

    Raises:
        UsageError: there is no such command, it has no such flag, or a flag's value is missing or can't be.
    """
    command, *rest = arguments or ["--help"]
    if command in HELP_WORDS:
        return print_overview(COMMANDS)
    if command in COMPLETION_WORDS:
        return _print_completion("".join(rest[:1]))
    check_command(command, COMMANDS)
    options = COMMANDS[command][0]
    if asks_for_help(rest):
        return print_command(command, options)
    words, config_file = with_config(command, options, rest)
    check_flags(command, options, words)
    return parse_flags(command, options, words, config_file)


def _print_completion(shell: str) -> None:
    """Print a shell's completion script. Raises UsageError where it is no shell that has one."""
    if shell not in SHELLS:
        raise UsageError(
            f"{shell or 'completion'}: expected a shell, one of {', '.join(SHELLS)}: spkid completion bash"
        )
    commands = {name: _with_config_flag(name, options) for name, (options, _, _) in COMMANDS.items()}
    asked, script = [TYRO_COMPLETION, shell], io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):  # tyro prints it, and ends the process
        tyro.extras.subcommand_cli_from_dict(commands, prog="spkid", args=asked, config=STYLE, use_underscores=True)
    text = script.getvalue()
    print(text.replace("{None}|", "").replace("{None,", "{").replace(" (default: None)", ""))  # as the help shows flags


def _with_config_flag(command: str, options: type[Any]) -> Callable[..., Any]:
    """The command's options as completion knows them: with --config where the command has it, which is none of its options."""
    if command not in CONFIG_COMMANDS:
        return options
    added = config_flag(command)
    hint = Annotated[Path | None, tyro.conf.arg(help=added.text)]
    flag = (added.name, hint, field(default=None))
    return make_dataclass(options.__name__, [flag], bases=(options,), frozen=True, kw_only=True)


class _Notes(logging.Handler):
    """Show what the library notes on the standard error, begun as all lines of a command are."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, unless the terminal is gone."""
        with contextlib.suppress(OSError):
            print(f"spkid: {printable(record.getMessage())}", file=sys.stderr)


@contextlib.contextmanager
def _notes_shown() -> Iterator[None]:
    """Show what the library logs, while the block runs."""
    library, notes = logging.getLogger("shards"), _Notes(logging.WARNING)
    library.addHandler(notes)
    try:
        yield
    finally:
        library.removeHandler(notes)


def _parse_and_run(parse: Callable[[], Any]) -> int:
    with _notes_shown():
        return _run(parse)


def _run(parse: Callable[[], Any]) -> int:
    try:
        config = parse()
        if config is None:
            return EXIT_DONE
        module, function = next((module, run) for options, module, run in COMMANDS.values() if type(config) is options)
        getattr(import_module(module), function)(config)
    except SpkidError as error:
        return _report(error)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_MODULES:
            raise
        needed = install_command(*REQUIREMENTS["train"])
        return _report(UsageError(f"{error.name} is not installed, and this command needs it: run {needed}"))
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
    if not (said_by_another or error.is_said):
        with contextlib.suppress(OSError):  # the terminal may be gone
            print(f"spkid: {'' if isinstance(error, Stopped) else 'error: '}{error}", file=sys.stderr)
    return error.exit_code
