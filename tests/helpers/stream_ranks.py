"""One rank of a launch that streams a dataset; what it saw goes to a file. Run by tests/stream/test_state.py under torchrun.

Arguments: a JSON file with the dataset's folder, its options, states to go on from, numbers of workers, and where to write.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed
from torch.utils.data import DataLoader

from spkid_dist.dataset import WindowDataset


def first_values(batches):
    """The first value of each window, which tells it from all others: a list a batch."""
    return [[int(row[0]) for row in x] for x, _ in batches]


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    if "killed_rank" in task:
        stream_until_killed(task, rank)
        return

    def dataset():
        return WindowDataset(task["folder"], **task["options"])

    epochs = {}
    for workers in task["workers"]:
        context = "spawn" if workers else None
        loader = DataLoader(dataset(), batch_size=None, num_workers=workers, multiprocessing_context=context)
        epochs[workers] = first_values(loader)
    rests = []
    for state in task["states"]:
        data = dataset()
        data.load_state_dict(state)
        rests.append(first_values(data))
        data.close()
    Path(task["out"], f"rank{rank}.json").write_text(json.dumps({"epochs": epochs, "rests": rests}))
    torch.distributed.destroy_process_group()


def stream_until_killed(task, rank) -> None:
    """Record each batch, then, all ranks together, the state after it; one rank kills itself in the middle."""
    data = WindowDataset(task["folder"], **task["options"])
    if task["state"]:
        data.load_state_dict(task["state"])
    with Path(task["out"], f"record{rank}.txt").open("a") as record:
        for step, (x, _) in enumerate(data):
            if (step, rank) == (task["killed_at"], task["killed_rank"]):
                os.kill(os.getpid(), signal.SIGKILL)
            record.write("".join(f"{data.position} {int(row[0])}\n" for row in x))
            record.flush()
            torch.distributed.barrier()
            if rank == 0:
                temporary = Path(task["out"], "state.tmp")
                temporary.write_text(json.dumps(data.state_dict()))
                temporary.rename(Path(task["out"], "state.json"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
