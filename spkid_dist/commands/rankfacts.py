"""Collect what one process of a job has: its place, device, memory, disk, versions, and the shards that it sees."""

import os
import platform
import socket
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from shards.dataset import ShardDataset
from shards.errors import InputError
from shards.resources import available_cpus
from shards.stores.store import StoreOptions
from spkid_dist.config import DoctorConfig
from spkid_dist.process.memory import free_memory
from spkid_dist.process.versions import installed_version

PACKAGES = ("spkid-dist", "torch", "accelerate", "numpy")
LOW_MEMORY_BYTES = 1_000_000_000
LOW_DISK_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """What a rank found; `device_id` tells devices of a host apart, None for CPUs; `fingerprint` is that of the shards."""

    rank: int
    local_rank: int
    host: str
    device: str
    device_id: str | None
    backend: str
    threads: int
    cores: int
    memory_bytes: int
    disk_bytes: int
    versions: dict[str, str]
    fingerprint: str | None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_at_this_process(config: DoctorConfig, accelerator: Accelerator) -> Vitals:
    """What this process has and sees; what is wrong with it is among its `problems`."""
    problems: list[str] = []
    notes: list[str] = []
    memory, disk = free_memory(), _free_disk(config.save_path)
    if memory < LOW_MEMORY_BYTES:
        notes.append(f"only {memory / 1e6:.0f} MB of memory are free")
    if disk < LOW_DISK_BYTES:
        notes.append(f"only {disk / 1e6:.0f} MB are free where --save_path {config.save_path} lies")
    if accelerator.is_main_process and not os.access(_existing(config.save_path), os.W_OK):
        problems.append(f"--save_path {config.save_path} can't be written")
    device, device_id = _device(accelerator.device)
    threads, cores = torch.get_num_threads(), available_cpus()
    of_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device_id is None and threads * of_host > cores:
        notes.append(
            f"{of_host} processes of {threads} threads on {cores} cores; set OMP_NUM_THREADS to {cores // of_host or 1}"
        )
    if device_id is not None and accelerator.is_local_main_process and of_host < torch.accelerator.device_count():
        notes.append(
            f"{of_host} process(es), but {torch.accelerator.device_count()} GPUs; --num_processes says how many"
        )
    return Vitals(
        rank=accelerator.process_index,
        local_rank=accelerator.local_process_index,
        host=socket.gethostname(),
        device=device,
        device_id=device_id,
        backend=torch.distributed.get_backend() if torch.distributed.is_initialized() else "none (one process)",
        threads=threads,
        cores=cores,
        memory_bytes=memory,
        disk_bytes=disk,
        versions={"python": platform.python_version()} | {name: installed_version(name) for name in PACKAGES},
        fingerprint=_fingerprint(config, problems),
        problems=problems,
        notes=notes,
    )


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _free_disk(path: Path) -> int:
    return int(psutil.disk_usage(str(_existing(path))).free)


def _device(device: torch.device) -> tuple[str, str | None]:
    """What to call a device, and what tells it from others of its host."""
    if device.type != "cuda":
        return device.type, None if device.type == "cpu" else str(device)
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    return f"{device} {properties.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free", str(properties.uuid)


def _fingerprint(config: DoctorConfig, problems: list[str]) -> str | None:
    """The fingerprint of the dataset, of which the first and the last block were read and checked."""
    if config.shards is None:
        return None
    try:
        dataset = ShardDataset(config.shards, StoreOptions(fingerprint=config.fingerprint))
        for block in {0, len(dataset.blocks) - 1}:
            dataset.read_block(block)
    except InputError as error:
        problems.append(f"--shards: {error}")
        return None
    return dataset.fingerprint
