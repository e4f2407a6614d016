"""A Slurm of two nodes on this machine, for the tests of this folder; nothing of it outlives `stop`.

    python tests/cluster/two_nodes.py install          # apt-get, on Debian and Ubuntu, as root
    python tests/cluster/two_nodes.py start FOLDER     # then: export SLURM_CONF=FOLDER/slurm.conf; sinfo; sbatch ...
    python tests/cluster/two_nodes.py stop FOLDER

It has its own munged, ports, key and state, all below FOLDER, so that it does not meet another Slurm of the machine. What it
changes outside is a line of /etc/hosts, for the nodes' names; `stop` removes it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "tini", "iproute2")
NODES = ("spkid-n1", "spkid-n2")
HOSTS = Path("/etc/hosts")
HOSTS_LINE = f"127.0.0.1 {' '.join(NODES)} # two-node Slurm of spkid-dist's tests\n"
START_SECONDS = 60

CONF = """\
ClusterName=spkid
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=600
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 Gres=gpu:2
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 Gres=gpu:2
PartitionName=all Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why a cluster can't be started here; None where it can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"{', '.join(lacking)} not installed; python tests/cluster/two_nodes.py install"
    return None if os.geteuid() == 0 else "needs root, as the Slurm of the tests runs its jobs so"


def install() -> None:
    """Install Slurm, and what else the tests of this folder need, by apt-get; nothing where all is there."""
    if all(shutil.which(name, path=_path()) for name in (*PROGRAMS, "tini", "ip")):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("two_nodes.py: can't install Slurm: needs root and apt-get; its tests will be skipped")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=True)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], env=quiet, check=True)


def start(folder: Path) -> None:
    """Write the configuration below `folder` and start all daemons; returns when both nodes are idle."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in ("state", *NODES):
        (folder / name).mkdir(exist_ok=True)
    conf = CONF.format(host=socket.gethostname(), folder=folder, nodes=NODES, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    (folder / "gres.conf").write_text("Name=gpu File=/dev/zero\nName=gpu File=/dev/full\n")  # no GPUs, but devices
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    if HOSTS_LINE not in HOSTS.read_text():
        with HOSTS.open("a") as hosts:
            hosts.write(HOSTS_LINE)
    files = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
    _daemon(folder, "munged", "munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", *files)
    _until(lambda: (folder / "munge.socket").exists(), "munged opens its socket")
    _daemon(folder, "slurmctld", "slurmctld", "-D", "-c")
    for node in NODES:
        start_node(folder, node)
    _until(
        lambda: slurm(folder, "sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * len(NODES), "the nodes are idle"
    )


def start_node(folder: Path, node: str) -> None:
    """Start the daemon of one node."""
    _daemon(folder, node, "slurmd", "-N", node, "-D")


def kill_node(folder: Path, node: str) -> None:
    """End a node as a power cut does: its daemon, its steps and all of their processes, by SIGKILL."""
    tasks = [process for process in _ours(folder) if _variable(process, "SLURMD_NODENAME") == node]
    daemons = [process for process in _ours(folder) if _is_daemon_of(process, node)]
    steps = {parent for task in tasks if (parent := task.parent()) and "slurmstepd" in " ".join(parent.cmdline())}
    _kill([*daemons, *steps, *tasks])


def stop(folder: Path) -> None:
    """End all jobs and daemons, and take the nodes' names out of /etc/hosts."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scancel", "--full", "-u", "root"], env=environment(folder), timeout=10, check=False)
    _kill(_ours(folder))
    HOSTS.write_text(HOSTS.read_text().replace(HOSTS_LINE, ""))


def slurm(folder: Path, *command: str) -> str:
    """What a command of Slurm prints; empty where it fails."""
    return subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, check=False, timeout=60
    ).stdout


def environment(folder: Path) -> dict[str, str]:
    """The environment in which commands of Slurm mean this cluster."""
    return os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def _daemon(folder: Path, name: str, *command: str) -> None:
    with (folder / f"{name}.out").open("ab") as out:
        detached = ("setsid", "--fork", *command)
        subprocess.run(detached, env=environment(folder), stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=True)


def _until(holds: object, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {START_SECONDS} s it still does not hold that {what}")
        time.sleep(0.1)


def _ours(folder: Path) -> list[psutil.Process]:
    """All processes of this cluster, told by the configuration that they were started with."""
    conf = str(folder / "slurm.conf")
    mine = os.getpid()
    return [p for p in psutil.process_iter() if p.pid != mine and _variable(p, "SLURM_CONF") == conf]


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except (psutil.Error, OSError):
        return None


def _is_daemon_of(process: psutil.Process, node: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "slurmd" and node in process.cmdline()
    return False


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes, timeout=10)


def main() -> None:
    """The entry of the script."""
    actions = {("install", 2): install, ("start", 3): start, ("stop", 3): stop}
    action = actions.get((sys.argv[1] if len(sys.argv) > 1 else "", len(sys.argv)))
    if action is None:
        sys.exit((__doc__ or "").partition("\n\n")[2])
    action(*(Path(argument).absolute() for argument in sys.argv[2:]))  # type: ignore[operator]


if __name__ == "__main__":
    main()
