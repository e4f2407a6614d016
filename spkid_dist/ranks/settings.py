"""Check what `accelerate config` and its variables ask for: it is done, refused, or said to have no effect.

accelerate reads some of them as they are, so a value that it does not know (`FP16`) means nothing to it, and others change
what it wraps around a network. A training here has one way for each of these things, which its own flags choose.
"""

from collections.abc import Mapping

from shards.errors import UsageError

PRECISIONS = ("no", "bf16", "fp16")
PRECISION = "ACCELERATE_MIXED_PRECISION"
STEPS = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
DEVICE = "ACCELERATE_TORCH_DEVICE"
# Ways to divide one network over processes, each switched on by a variable: the training divides batches alone.
DIVIDING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration (tensor, context or sharded parallelism)",
}
FLAGS = ("ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_USE_SAGEMAKER", "FORK_LAUNCHED")
NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
TRUE, FALSE = ("1", "true", "t", "yes", "y", "on"), ("", "0", "false", "f", "no", "n", "off")


def precision_of(environment: Mapping[str, str], flag: str | None) -> str:
    """The precision that `flag` names, or the launcher where that is None: no, bf16 or fp16.

    Raises:
        UsageError: the launcher's is another, such as fp8.
    """
    if flag is not None:
        return flag
    found = environment.get(PRECISION, "").strip().lower() or "no"
    if found not in PRECISIONS:
        raise UsageError(
            f"{PRECISION} is {environment[PRECISION]!r}: expected {', '.join(PRECISIONS)}; run accelerate config again, "
            "or give --mixed_precision"
        )
    return found


def check_settings(environment: Mapping[str, str]) -> None:
    """Refuse settings that can't be followed, by trainings or by scoring.

    Raises:
        UsageError: one of them asks for what is not done here, or is no value that it can have.
    """
    for name, what in DIVIDING.items():
        if _is_true(environment, name):
            raise UsageError(
                f"{name} is {environment[name]}: asks for {what}, but each process holds the whole network here; run "
                "accelerate config again without it, or unset it"
            )
    for name in FLAGS:
        _is_true(environment, name)
    for name in NUMBERS:
        if name in environment and not environment[name].isdigit():
            raise UsageError(f"{name} is {environment[name]!r}: expected a whole number; launchers set it, so unset it")
    if environment.get(DEVICE):
        raise UsageError(
            f"{DEVICE} is {environment[DEVICE]}: the launcher chooses the device; unset it (ACCELERATE_USE_CPU=true: CPUs)"
        )


def check_accumulation(environment: Mapping[str, str]) -> None:
    """Refuse accelerate's accumulation of gradients over batches: each batch is a step. Raises UsageError."""
    if environment.get(STEPS, "1") != "1":
        raise UsageError(
            f"{STEPS} is {environment[STEPS]}: each batch is a step here; leave it 1 and set --accumulation"
        )


def settings_without_effect(environment: Mapping[str, str]) -> list[str]:
    """A line for each setting that changes nothing here, and the flag that does what it asks for."""
    lines = []
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        lines.append(
            f"ACCELERATE_DYNAMO_BACKEND is {backend}: it has no effect here; to compile the network, give --compile"
        )
    norm = environment.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if norm.lower() not in ("none", ""):
        lines.append(
            f"ACCELERATE_GRADIENT_CLIPPING is {norm}: it has no effect here; to clip gradients, give --clip_grad_norm"
        )
    return lines


def check_devices(environment: Mapping[str, str], device_count: int) -> None:
    """Refuse more processes on this machine than it has GPUs; each needs one of its own.

    Only where one launcher started them: tasks of a batch system may see a GPU each, and that one alone.

    Raises:
        UsageError: there are more; on all processes of the machine, and the first of them reports it.
    """
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in environment or processes <= device_count:
        return
    error = UsageError(
        f"{processes} processes were started on this machine, which has {device_count} GPU{'s' * (device_count != 1)}, and "
        f"each needs one of its own; launch with --num_processes {device_count} (per machine), or on CPUs with "
        "ACCELERATE_USE_CPU=true"
    )
    error.everywhere = environment.get("LOCAL_RANK", "0") != "0"
    raise error


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "").lower()
    if value not in (*TRUE, *FALSE):
        raise UsageError(f"{name} is {environment[name]!r}: expected true or false; correct or unset it")
    return value in TRUE
