"""Import libraries that only some sources, options and exports need, when one of them is used."""

import shlex
import sys
from importlib import import_module
from typing import Any

from shards.errors import UsageError

# What an extra of the project brings, as pyproject.toml has it.
REQUIREMENTS = {
    "train": (
        "accelerate>=1.10",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "safetensors>=0.4.3",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "torch>=2.11",
    ),
    "audio": ("kaldi-native-fbank>=1.23", "soundfile>=0.13", "soxr>=0.5"),
    "kaldi": ("kaldiio>=2.18",),
    "onnx": ("onnx>=1.17", "onnxscript>=0.5"),
    "parquet": ("pyarrow>=16.1",),
    "slurm": ("submitit>=1.5",),
    "tensorboard": ("tensorboard>=2.16",),
}


def install_command(*requirements: str) -> str:
    """The command that installs `requirements` for the Python that runs, wherever this project was installed from."""
    return shlex.join([sys.executable, "-m", "pip", "install", *requirements])


def import_extra(module: str, extra: str, needed_by: str = "this source") -> Any:
    """The module, which the optional dependencies `extra` of this project bring; `needed_by` is for the message.

    Raises:
        UsageError: it is not installed, or does not load.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: soundfile without its C library
        raise UsageError(
            f"{module} can't be imported ({error}), and {needed_by} needs it: run {install_command(*REQUIREMENTS[extra])}"
        ) from None
