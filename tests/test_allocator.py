"""A process that keeps what it frees takes its next steps without asking the system for memory."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import torch
from spkid_dist.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
layers = [torch.nn.Linear(420, 100), torch.nn.ReLU(), torch.nn.Linear(100, 157), torch.nn.LogSoftmax(dim=1)]
network, x = torch.nn.Sequential(*layers), torch.randn(1000, 420)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(x).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(20)
print(faults(100) / 100)
"""


def test_steps_cause_no_page_faults():
    faults = {}
    for how in ("kept", "given back"):
        command = [sys.executable, "-c", PROGRAM, how]
        faults[how] = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert faults["kept"] < 5
    assert faults["given back"] > 10 * faults["kept"]
