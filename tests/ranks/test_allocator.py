"""A process that keeps what it frees takes it again without asking the system."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from spkid_dist.process.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        tensors = [torch.ones(1000, 157) for _ in range(40)]
        del tensors
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds

torch.set_num_threads(1)
faults(10)
print(faults(20))
"""


@pytest.mark.long
def test_tensors_that_were_freed_cause_no_page_faults_when_they_are_made_again():
    faults = {}
    for how in ("kept", "given back"):
        command = [sys.executable, "-c", PROGRAM, how]
        faults[how] = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    pages = 40 * 1000 * 157 * 4 / 4096
    assert faults["kept"] < pages / 100
    assert faults["given back"] > pages / 2
