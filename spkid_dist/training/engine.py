"""Make the engine that does a step of the training: forward, backward and optimiser, for a rank's share of a global batch.

Three engines do the same arithmetic. ``eager`` goes through accelerate's wrappers and does all that the options ask for.
``graph`` keeps every tensor of a step in its place, so that a GPU replays many steps as one graph, and joins the ranks'
gradients in one all-reduce. ``fused`` does the classic network's step in a few kernels of its own, on GPUs.
"""

import torch

from spkid_dist.training.deviceengine import DeviceEngine
from spkid_dist.training.eager import EagerEngine
from spkid_dist.training.enginechoice import EngineName
from spkid_dist.training.fusedengine import FusedEngine
from spkid_dist.training.graph import GraphEngine
from spkid_dist.training.job import Job
from spkid_dist.training.learner import Learner
from spkid_dist.training.step import Engine


def make_engine(engine: EngineName, job: Job, learner: Learner, *, placed: bool, frames_dtype: torch.dtype) -> Engine:
    """The engine that does the steps of `learner`, once its state is that which training begins with.

    `placed` says whether the windows lie on a device, and `frames_dtype` is that of their frames there.
    """
    torch.backends.cuda.matmul.allow_tf32 = job.config.tf32
    if engine == "fused":
        return FusedEngine(job, learner, frames_dtype)
    if engine == "graph":
        return DeviceEngine(job, learner) if placed else GraphEngine(job, learner)
    return EagerEngine(job, learner)
