"""Keep torch's compiler unloaded in processes that compile nothing: loading it takes as long as torch itself.

torch imports `torch._dynamo` when an optimiser is first made, only to mark some of its methods as not to be compiled
(`torch._compile._disable_dynamo`). Each marked method keeps the mark in an attribute, and where the attribute is
there, nothing is imported. On 2 cores it is 1.2 s of the 2.4 s that a small training takes after its imports (torch
2.13.0).
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.optim import Optimizer

MARK = "__dynamo_disable"  # as torch names it; where a version has another name, the import happens as ever
METHODS = ("state_dict", "load_state_dict", "add_param_group")


@contextmanager
def compiler_not_needed() -> Iterator[None]:
    """In the block, let optimisers be made and saved without the compiler; nothing where it is loaded already."""
    marked = []
    if "torch._dynamo" not in sys.modules:
        methods = [getattr(getattr(Optimizer, name, None), "__wrapped__", None) for name in METHODS]
        marked = [method for method in methods if method is not None and not hasattr(method, MARK)]
    for method in marked:
        setattr(method, MARK, method)
    try:
        yield
    finally:
        for method in marked:
            delattr(method, MARK)


def plain_step(optimizer: Optimizer) -> Callable[[], None]:
    """The optimiser's step without torch's wrappers around it, which load the compiler and record the step for a profiler."""
    step = inspect.unwrap(type(optimizer).step)

    def take() -> None:
        with torch.no_grad():
            step(optimizer)

    return take
