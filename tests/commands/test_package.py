"""What `import spkid_dist` gives, and what it does not load."""

import subprocess
import sys

import pytest

import spkid_dist


@pytest.mark.parametrize(
    "program",
    [
        "import sys; from spkid_dist import ScoreConfig, TrainConfig; assert 'torch' not in sys.modules",
        "import sys, spkid_dist.score; assert 'torch._dynamo' not in sys.modules",  # it takes as long as torch itself
        "import sys, shards.errors; assert 'numba' not in sys.modules and 'numpy' not in sys.modules",
        "import sys, spkid_dist.config; assert 'numba' not in sys.modules and 'tyro' not in sys.modules",
        "import importlib, spkid_dist.train as module; importlib.reload(module); assert callable(module.train_model)",
    ],
)
def test_imports_load_no_more_than_is_needed_and_find_functions_in_any_order(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_of_the_interface_is_there():
    for name in spkid_dist.__all__:
        assert getattr(spkid_dist, name).__name__ == name
    assert set(spkid_dist.__all__) <= set(dir(spkid_dist))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spkid_dist.nothing


WITHOUT_TORCH = """
import sys

class NotInstalled:
    def find_spec(self, name, *rest):
        if name in ("torch", "accelerate", "matplotlib", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from spkid_dist.commands.cli import main
main()
"""


def run_without_torch(*words):
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_sharding_and_looking_need_no_torch(synthetic, tmp_path):
    files = ("--db_path", synthetic / "mcp", "--list", synthetic / "cfg/all.test", "--spk2idx", tmp_path / "map.json")
    assert run_without_torch("shard", *files, "--out", tmp_path / "out").returncode == 0
    for command in ("info", "verify"):
        done = run_without_torch(command, tmp_path / "out")
        assert done.returncode == 0, done.stderr


def test_a_training_without_torch_names_the_command_that_installs_it():
    done = run_without_torch("train")
    assert done.returncode == 2
    assert done.stderr.startswith("spkid: error: torch is not installed, and this command needs it: run ")
    assert (
        "pip install 'accelerate>=1.10' 'jinja2>=3.1' 'matplotlib>=3.8' 'safetensors>=0.4.3' 'scikit-learn>=1.4' "
        in done.stderr
    )
