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
