"""Hosts that are namespaces of this machine: each with a name, a network card, processes, /dev/shm and sshd.

They live as long as their first process, sshd; the kernel ends all that runs on a host with it. `enter` puts
the whole cluster below a process of the same kind, so that nothing is left however the program ends.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {"pdsh": "pdsh", "/usr/sbin/sshd": "openssh-server", "ssh": "openssh-client", "ip": "iproute2"}
PROGRAMS |= dict.fromkeys(("unshare", "nsenter", "setpriv"), "util-linux")  # program -> Debian's package
NETWORK = "10.77.0"
CARD = "eth0"
SAME_EVERYWHERE = "docker0"  # a bridge that every host has for itself, under one address, as Docker's
GUARD_S = 300.0  # against a hang; nothing is measured by it


class ClusterError(RuntimeError):
    """The hosts cannot be made here; one line."""


@dataclass
class Ended:
    status: int
    output: str


@dataclass
class Running:
    """A command on a host."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self) -> Ended:
        """Raises ClusterError when it does not end."""
        try:
            status = self.process.wait(GUARD_S)
        except subprocess.TimeoutExpired:
            raise ClusterError(f"did not end within {GUARD_S:g} s:\n{self.output()[-4000:]}") from None
        return Ended(status, self.output())

    def output(self) -> str:
        return self.log.read_text(errors="replace")


def missing_programs() -> str | None:
    """The Debian packages that are not here, in a line; and whether namespaces may be made."""
    packages = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if packages:
        return f"{', '.join(sorted(packages))} missing: apt-get install {' '.join(sorted(packages))}"
    made = subprocess.run(_namespaces("true"), capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no namespaces may be made here (root is needed): {made.stderr.strip()}"
    return None


def enter(module: str, arguments: Sequence[str]) -> int:
    """Run a Python module in namespaces of its own; what it starts ends with it, and it with this process."""
    # setpriv: should this process be killed, the namespaces go too.
    command = ["setpriv", "--pdeathsig", "KILL", *_namespaces(sys.executable, "-m", module, *arguments)]
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()  # --kill-child: the first process of the namespaces, and so all in them
            raise


@dataclass
class Host:
    """node1, node2, ...; `number` counts from 1."""

    number: int
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def hardware_address(self) -> str:
        """Of its card: the same after a restart, as a real machine's, since the others remember it for a
        while."""
        return f"02:00:0a:4d:00:{self.number:02x}"

    @property
    def outside(self) -> str:
        """The other end of its card, at the bridge."""
        return f"to_{self.name}"

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str], cwd: Path) -> Running:
        logs = self.folder / "logs"
        log = logs / f"{len(list(logs.iterdir())):03d}_{self.name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self._entering(cwd), *map(str, command)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return Running(process, log)

    def boot(self, others: "Sequence[Host]") -> None:
        """Name, card and sshd. Its name resolves to 127.0.1.1 on itself, as Debian has it."""
        names = ["127.0.0.1 localhost", f"127.0.1.1 {self.name}"]
        names += [f"{other.address} {other.name}" for other in others if other.number != self.number]
        hosts = self.folder / f"hosts_{self.number}"
        hosts.write_text("\n".join(names) + "\n")
        # sshd wants /run/sshd; a tmpfs there leaves the machine's own alone.
        script = f"""set -e
            hostname {self.name}
            mount --bind {hosts} /etc/hosts
            mount -t tmpfs none /dev/shm
            mount -t tmpfs none /run
            mkdir -m 755 /run/sshd
            read card
            ip link set lo up
            ip addr add {self.address}/24 dev {CARD}
            ip link set {CARD} up
            ip link add {SAME_EVERYWHERE} type bridge
            ip addr add 172.17.0.1/16 dev {SAME_EVERYWHERE}
            ip link set {SAME_EVERYWHERE} up
            exec /usr/sbin/sshd -D -e -f {self.folder}/sshd_config"""
        log = (self.folder / f"sshd_{self.number}.log").open("wb")
        with log:
            self.process = subprocess.Popen(
                _namespaces("sh", "-c", script), stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        _until(lambda: self._first_process() is not None, f"{self.name} did not start")
        first = self._first_process()
        # The kernel takes a lost host's card away some time later, and with it the name.
        subprocess.run(["ip", "link", "del", self.outside], capture_output=True, check=False)
        card = ("name", CARD, "address", self.hardware_address, "netns", str(first))
        _run("ip", "link", "add", self.outside, "type", "veth", "peer", *card)
        _run("ip", "link", "set", self.outside, "master", "br0", "up")
        assert self.process.stdin
        self.process.stdin.write(b"card\n")
        self.process.stdin.close()
        _until(self._answers, f"sshd of {self.name} does not answer; {self.folder}/sshd_{self.number}.log")

    def stop(self) -> None:
        """End all that runs here, at once, as a machine that loses its power."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def left_behind(self) -> list[str]:
        """What runs here beside sshd, and the files in /dev/shm."""
        script = (
            "for p in /proc/[0-9]*; do n=${p#/proc/}; [ $n = 1 ] || [ $n = $$ ] || "
            "tr '\\0' ' ' < $p/cmdline 2>/dev/null | head -c 200; done; ls -A /dev/shm"
        )
        listed = subprocess.run(
            [*self._entering(), "sh", "-c", script], capture_output=True, text=True, check=False
        )
        return [line for line in listed.stdout.splitlines() if line.strip()]

    def _entering(self, cwd: Path = Path("/")) -> list[str]:
        namespaces = ["--net", "--uts", "--mount", "--pid"]
        return ["nsenter", "--target", str(self._first_process()), *namespaces, f"--wdns={cwd}", "--"]

    def _first_process(self) -> int | None:
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _answers(self) -> bool:
        command = ["ssh", "-F", str(self.folder / "ssh_config"), self.address, "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def cluster(folder: Path, size: int) -> Iterator[list[Host]]:
    """Hosts on one bridge, with keys of their own in `folder`. To be called below `enter`."""
    (folder / "logs").mkdir()
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "br0", "type", "bridge")
    _run("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "br0")
    _run("ip", "link", "set", "br0", "up")
    for key in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nPidFile none\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
        "GlobalKnownHostsFile none\nStrictHostKeyChecking accept-new\nBatchMode yes\nLogLevel ERROR\n"
    )
    hosts = [Host(number, folder) for number in range(1, size + 1)]
    try:
        for host in hosts:
            host.boot(hosts)
        yield hosts
    finally:
        for host in hosts:
            host.stop()


def _namespaces(*command: str) -> list[str]:
    kinds = ["--net", "--uts", "--mount", "--pid"]
    return ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc", "--", *command]


def _run(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise ClusterError(f"{' '.join(command)}: {ended.stderr.strip() or ended.stdout.strip()}")


def _until(ready: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + GUARD_S
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(problem)
        time.sleep(0.05)


def clean_environment() -> dict[str, str]:
    """This process's, without what a launcher or the tests have set."""
    prefixes = ("SLURM_", "OMPI_", "GLOO_", "NCCL_", "TORCHELASTIC_", "MASTER_", "PDSH_", "DS_")
    others = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"}
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes) and k not in others}
