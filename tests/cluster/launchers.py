"""One training over all hosts, a rank a host, by each launcher."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.hosts import CARD, Ended, Host, Running, clean_environment
from nodes import PYTHONPATH, ROOT

SCRIPT = ROOT / "launch" / "train.py"
PORT = 29500
GLOO = {"GLOO_SOCKET_IFNAME": CARD}


@dataclass(frozen=True)
class Job:
    """What is started on which hosts; `variables` are handed to every rank, each launcher its own way."""

    hosts: Sequence[Host]
    folder: Path
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    script: Path = SCRIPT

    @property
    def command(self) -> list[str]:
        return [str(self.script), *self.arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**clean_environment(), "PYTHONPATH": PYTHONPATH, "DS_ACCELERATOR": "cpu"}

    def hostfile(self) -> Path:
        path = self.folder / "hostfile"
        path.write_text("".join(f"{host.name} slots=1\n" for host in self.hosts))
        return path

    def start(self, host: Host, command: Sequence[str | Path], **variables: str) -> Running:
        return host.start(command, {**self.environment, **variables}, ROOT)


Launcher = Callable[[Job], list[Running]]


def pdsh(job: Job) -> list[Running]:
    """`deepspeed` on the first host, over ssh on all; variables by .deepspeed_env."""
    ssh = f"-F {job.folder}/ssh_config"
    return [_deepspeed(job, ("--no_ssh_check", "--force_multi"), PDSH_SSH_ARGS_APPEND=ssh)]


def openmpi(job: Job) -> list[Running]:
    """The same through mpirun, which has no port of the ranks' own."""
    mpi = f"--mca btl_tcp_if_include {CARD} --mca oob_tcp_if_include {CARD} --allow-run-as-root"
    mpi += f" --mca plm_rsh_args '-F {job.folder}/ssh_config'"
    options = ("--no_ssh_check", "--launcher", "openmpi", "--launcher_args", mpi)
    master = {"MASTER_ADDR": job.hosts[0].address, "MASTER_PORT": str(PORT)}
    alone = Job(job.hosts, job.folder, job.arguments, {**job.variables, **master}, job.script)
    return [_deepspeed(alone, options)]


def no_ssh(job: Job) -> list[Running]:
    """`deepspeed` on each host."""
    command = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--hostfile",
        str(job.hostfile()),
        "--no_ssh",
    ]
    command += ["--master_addr", job.hosts[0].address, "--master_port", str(PORT)]
    return [
        job.start(host, [*command, "--node_rank", str(rank), *job.command], **job.variables)
        for rank, host in enumerate(job.hosts)
    ]


def torchrun(job: Job) -> list[Running]:
    """`torchrun` on each host; they find each other at the first one's."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(job.hosts))]
    command += ["--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "cluster"]
    command += ["--rdzv_endpoint", f"{job.hosts[0].name}:{PORT}"]
    return [
        job.start(host, [*command, "--local_addr", host.address, *job.command], **job.variables)
        for host in job.hosts
    ]


def srun(job: Job) -> list[Running]:
    """A process a host with the variables that srun sets; no Slurm."""
    master = {"MASTER_ADDR": job.hosts[0].name, "MASTER_PORT": str(PORT)}
    size = str(len(job.hosts))
    slurm = {"SLURM_NTASKS": size, "SLURM_STEP_NUM_TASKS": size, "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_NTASKS_PER_NODE": "1"}
    return [
        job.start(
            host,
            [sys.executable, *job.command],
            **job.variables,
            **master,
            **slurm,
            SLURM_PROCID=str(rank),
        )
        for rank, host in enumerate(job.hosts)
    ]


def one_host(job: Job) -> list[Running]:
    """All ranks on the first host."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1"]
    command += ["--nproc_per_node", str(len(job.hosts))]
    return [job.start(job.hosts[0], [*command, *job.command], **job.variables)]


def node_sh(job: Job) -> list[Running]:
    """launch/node.sh on each host, as a scheduler starts it."""
    told = {"NODES": str(len(job.hosts)), "SLOTS": "1", "MASTER_ADDR": job.hosts[0].name}
    told |= {"STOP": "/nowhere/stop", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "launch" / "node.sh"), *job.arguments]
    return [
        job.start(host, command, **job.variables, **told, NODE_RANK=str(rank))
        for rank, host in enumerate(job.hosts)
    ]


LAUNCHERS: dict[str, Launcher] = {
    "pdsh": pdsh,
    "no_ssh": no_ssh,
    "node_sh": node_sh,
    "torchrun": torchrun,
    "srun": srun,
    "openmpi": openmpi,
}


def wait(running: Sequence[Running]) -> list[Ended]:
    return [one.wait() for one in running]


def _deepspeed(job: Job, options: Sequence[str], **variables: str) -> Running:
    handed_on = job.folder / "deepspeed_env"
    handed_on.write_text("".join(f"{name}={value}\n" for name, value in job.variables.items()))
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(job.hostfile()), *options]
    command += ["--master_addr", job.hosts[0].address, "--master_port", str(PORT), *job.command]
    return job.start(job.hosts[0], command, DS_ENV_FILE=str(handed_on), **variables)
