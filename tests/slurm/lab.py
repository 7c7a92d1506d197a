"""A real Slurm on this machine, with several virtual nodes, from Debian's packages. Needs root.

    python tests/slurm/lab.py up FOLDER [NODES]        python tests/slurm/lab.py down FOLDER

Everything is in FOLDER, but for a line a node in /etc/hosts, which `down` takes out: Lightning meets at a node's name.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PORT = 26817
CPUS = 2
"""CPUs of each virtual node, however many the machine has."""
GPUS = 2
"""GPUs of each virtual node: empty files that Slurm takes for devices, for jobs that request some."""
MARK = "# lcm-slurm-lab"
HOSTS = Path("/etc/hosts")


def up(folder: Path, nodes: int) -> None:
    """Install what lacks, start every daemon, and wait until all nodes are idle."""
    _install()
    down(folder)
    for name in ("run", "log", "state", *(f"spool/node{i}" for i in range(nodes))):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(_configuration(folder, nodes))
    _write_gpus(folder, nodes)
    with HOSTS.open("a") as file:
        file.writelines(f"127.0.0.1 node{i} {MARK}\n" for i in range(nodes))
    run, log = folder / "run", folder / "log"
    _start("munged", f"--key-file={key}", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid",
           f"--seed-file={folder}/munged.seed", f"--log-file={log}/munged.log", "--force")  # fmt: skip
    _start("slurmctld", "-f", str(folder / "slurm.conf"))
    for i in range(nodes):
        _start("slurmd", "-N", f"node{i}", "-f", str(folder / "slurm.conf"))
    until(lambda: slurm(folder, "sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * nodes, 60)


def down(folder: Path) -> None:
    """Stop whatever of it runs, and remove the folder."""
    if (folder / "slurm.conf").is_file():
        with suppress(subprocess.SubprocessError):
            slurm(folder, "scancel", "--user=root")
    for name in ("slurmctld", *(f.stem for f in folder.glob("run/slurmd.*.pid")), "munged"):
        _stop(folder / "run" / f"{name}.pid")
    for process in _left(folder):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    lines = HOSTS.read_text().splitlines(keepends=True)
    if any(MARK in line for line in lines):
        HOSTS.write_text("".join(line for line in lines if MARK not in line))
    shutil.rmtree(folder, ignore_errors=True)


def slurm(folder: Path, *command: str, **environment: str) -> str:
    """A command's output. Raises CalledProcessError where it fails."""
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def until(done, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"still not, after {seconds} seconds"
        time.sleep(0.1)


def kill_node(folder: Path, node: int) -> None:
    """Kill the daemon and all that ran there, like a power failure."""
    daemon = int((folder / f"run/slurmd.node{node}.pid").read_text())
    with suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGKILL)
    for process in _left(folder, f"node{node}"):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def revive_node(folder: Path, node: int) -> None:
    _start("slurmd", "-N", f"node{node}", "-f", str(folder / "slurm.conf"))

    def serves() -> bool:
        with suppress(subprocess.CalledProcessError):  # which it is where it serves already
            slurm(folder, "scontrol", "update", f"NodeName=node{node}", "State=RESUME")
        return slurm(folder, "sinfo", "-h", "-n", f"node{node}", "-o", "%T").strip() in ("idle", "allocated", "mixed")

    until(serves, 60)


def _install() -> None:
    lacking = [name for name in PACKAGES if subprocess.run(["dpkg", "-s", name], capture_output=True).returncode]
    if not lacking:
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *lacking]):
        subprocess.run(["apt-get", "-qq", *command], env=environment, check=True, stdout=subprocess.DEVNULL)


def _start(name: str, *arguments: str) -> None:
    """A daemon, which leaves us by itself. It must not hold our pipes open."""
    command = [shutil.which(name, path="/usr/sbin:/sbin") or name, *arguments]
    with open(os.devnull, "r+") as nowhere:
        subprocess.run(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, check=True, timeout=60)


def _stop(file: Path) -> None:
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        process = int(file.read_text())
        os.kill(process, signal.SIGTERM)
        for _ in range(150):
            os.kill(process, 0)
            time.sleep(0.1)
        os.kill(process, signal.SIGKILL)


def _left(folder: Path, node: str = "") -> list[int]:
    """Processes of jobs, which outlive a slurmd, on one node or on all; each names its cluster and node."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            if f"SLURM_CONF={folder}/slurm.conf" not in environment or "SLURM_JOB_ID" not in str(environment):
                continue
            if not node or f"SLURMD_NODENAME={node}" in environment:
                found.append(int(entry.name))
    return found


def _write_gpus(folder: Path, nodes: int) -> None:
    for number in range(GPUS):
        (folder / f"gpu{number}").touch()
    lines = (f"NodeName=node{i} Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n" for i in range(nodes))
    (folder / "gres.conf").write_text("".join(lines))


def _configuration(folder: Path, nodes: int) -> str:
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10
    each = "\n".join(
        f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={PORT + 1 + i} CPUs={CPUS} RealMemory={memory}"
        f" Gres=gpu:{GPUS}"
        for i in range(nodes)
    )
    return f"""
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until the credentials of its first start have expired, usually two minutes.
AuthInfo=socket={folder}/run/munge.socket,cred_expire=10
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# No cgroups, which a container may not have.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MinJobAge=3600
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=120
GresTypes=gpu
{each}
PartitionName=main Nodes=node[0-{nodes - 1}] Default=YES MaxTime=INFINITE State=UP
""".lstrip()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["up", folder, *nodes] if not nodes or re.fullmatch(r"\d+", nodes[0]):
            up(Path(folder).absolute(), int(nodes[0]) if nodes else 2)
        case ["down", folder]:
            down(Path(folder).absolute())
        case _:
            sys.exit(__doc__)
