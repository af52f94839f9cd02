"""The files in `launch/` for launchers and schedulers: their form, what they do with exit statuses."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from manifests import FailurePolicy, JobSet, JobSpec, TrainingRuntime, TrainJob, read_manifests, read_task
from maskreid_dist import exit_status
from maskreid_dist.recipe import load_recipe
from nodes import ROOT

LAUNCH = ROOT / "launch"
NODE = LAUNCH / "node.sh"
SBATCH = LAUNCH / "slurm" / "train.sbatch"


@pytest.mark.parametrize("script", [NODE, SBATCH], ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_deepspeed_reads_its_hostfile_and_variables() -> None:
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(LAUNCH / "hostfile")) == {"node0": 8, "node1": 8}
    # It splits every line at its first "=": no comment, no blank line.
    pairs = [line.split("=", maxsplit=1) for line in (LAUNCH / ".deepspeed_env").read_text().splitlines()]
    assert [name for name, _ in pairs] == ["GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"]


def outcome(policy: FailurePolicy, job: JobSpec, status: int, disrupted: bool = False) -> str:
    """What JobSet does when a pod ends so: the first rule of the Job's, then the first of the JobSet's."""
    (container,) = job.template.spec.containers
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job.podFailurePolicy.rules):
        codes = rule.onExitCodes
        ended = f"matching {rule.action} rule at index {index}"
        if codes and codes.containerName == container.name and status in codes.values:
            assert codes.operator == "In"
            reason = "PodFailurePolicy"
            message = f"Container {container.name} for pod default/x failed with exit code {status} {ended}"
            break
        if disrupted and rule.onPodConditions:
            reason, message = "PodFailurePolicy", f"Pod default/x has condition DisruptionTarget {ended}"
            break
    assert job.backoffLimit == 0
    for of_set in policy.rules:
        patterns = of_set.onJobFailureMessagePatterns
        if reason in of_set.onJobFailureReasons and any(re.search(text, message) for text in patterns):
            return of_set.action
    return "RestartJobSet"  # of those that count, maxRestarts


def policies() -> dict[str, tuple[FailurePolicy, JobSpec]]:
    (jobset,) = read_manifests(LAUNCH / "k8s" / "jobset.yaml")
    runtime, _ = read_manifests(LAUNCH / "k8s" / "trainjob.yaml")
    assert isinstance(jobset, JobSet) and isinstance(runtime, TrainingRuntime)
    specs = {"jobset": jobset.spec, "trainjob": runtime.spec.template.spec}
    return {name: (spec.failurePolicy, spec.replicatedJobs[0].template.spec) for name, spec in specs.items()}


@pytest.mark.parametrize("name", ["jobset", "trainjob"])
def test_kubernetes_does_with_a_status_what_it_means(name: str) -> None:
    policy, job = policies()[name]
    assert outcome(policy, job, exit_status.STOPPED) == "RestartJobSetAndIgnoreMaxRestarts"
    assert outcome(policy, job, exit_status.NEVER_AGAIN) == "FailJobSet"
    assert outcome(policy, job, exit_status.START_AGAIN) == "RestartJobSet"
    assert outcome(policy, job, 137) == "RestartJobSet"
    assert outcome(policy, job, 137, disrupted=True) == "RestartJobSetAndIgnoreMaxRestarts"
    assert outcome(policy, job, 20) == outcome(policy, job, 27) == "RestartJobSet"
    assert policy.maxRestarts > 0


def test_manifests_fit_together() -> None:
    (jobset,) = read_manifests(LAUNCH / "k8s" / "jobset.yaml")
    assert isinstance(jobset, JobSet)
    job = jobset.spec.replicatedJobs[0].template.spec
    (container,) = job.template.spec.containers
    variables = {variable.name: variable.value for variable in container.env}
    assert variables["NODES"] == str(job.completions) == str(job.parallelism)
    assert variables["SLOTS"] == container.resources.limits["nvidia.com/gpu"]
    first = f"{jobset.metadata.name}-{jobset.spec.replicatedJobs[0].name}-0-0"
    assert variables["MASTER_ADDR"] == f"{first}.{jobset.metadata.name}"
    runtime, train_job = read_manifests(LAUNCH / "k8s" / "trainjob.yaml")
    assert isinstance(runtime, TrainingRuntime) and isinstance(train_job, TrainJob)
    trainer = train_job.spec.trainer
    assert train_job.spec.runtimeRef.name == runtime.metadata.name
    of_trainer = {variable.name: variable.value for variable in trainer.env}
    assert of_trainer["SLOTS"] == trainer.resourcesPerNode.limits["nvidia.com/gpu"]
    task = read_task(LAUNCH / "skypilot.yaml")
    assert task.resources.job_recovery.recover_on_exit_codes == [exit_status.STOPPED]
    for script in (task.setup, task.run):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    stop = "/shared/runs/market1501_rank/stop"
    assert variables["STOP"] == of_trainer["STOP"] == stop and f"STOP={stop}" in task.run
    for arguments in (container.args, trainer.args, task.run.split()):
        recipe = next(argument for argument in arguments if argument.endswith(".toml"))
        assert load_recipe(ROOT / recipe).name == "market1501_rank" and "--resume" in arguments


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("FailJobSet", "FailJob"),
        ("onJobFailureMessagePatterns:", "onJobFailureMessagePattern:"),
        ("replicas: 1", 'replicas: "1"'),
        ("values: [2, 75]", "values: [2, 750]"),
    ],
)
def test_the_check_of_manifests_finds_mistakes(tmp_path: Path, before: str, after: str) -> None:
    text = (LAUNCH / "k8s" / "jobset.yaml").read_text()
    path = tmp_path / "jobset.yaml"
    path.write_text(text.replace(before, after, 1))
    assert before in text
    with pytest.raises(ValidationError):
        read_manifests(path)


STAND_IN = """#!{python}
import os, pathlib, sys, time
arguments = sys.argv[1:]
hosts = pathlib.Path(arguments[arguments.index("--hostfile") + 1]).read_text()
pathlib.Path("{told}").write_text(hosts + " ".join(arguments))
with open("{ready}", "w") as ready:
    ready.write("x")
stop = pathlib.Path(os.environ["STOP"])
while not stop.exists() and not {at_once}:
    time.sleep(0.02)
sys.exit({status})
"""


def start_node(folder: Path, status: int, at_once: bool, **variables: str) -> "subprocess.Popen[str]":
    """node.sh with a program in Python's place that ends with a status, at once or when it finds STOP."""
    program = folder / "python"
    told, ready = folder / "told", folder / "ready"
    os.mkfifo(ready)
    program.write_text(
        STAND_IN.format(python=sys.executable, told=told, ready=ready, at_once=at_once, status=status)
    )
    program.chmod(0o755)
    # A training of an earlier test in this process may have set the port.
    others = {name: text for name, text in os.environ.items() if name != "MASTER_PORT"}
    environment = {**others, "PYTHON": str(program), "NODES": "3", "NODE_RANK": "1", "SLOTS": "2"}
    environment |= {"MASTER_ADDR": "first", "STOP": str(folder / "runs" / "x" / "stop"), **variables}
    return subprocess.Popen(
        ["bash", str(NODE), "recipe.toml", "--set", "name=a b"], env=environment, text=True, stderr=-1
    )


@pytest.mark.parametrize("status", [0, 1, 2, 75])
def test_a_node_ends_as_its_ranks(tmp_path: Path, status: int) -> None:
    node = start_node(tmp_path, status, at_once=True)
    (tmp_path / "ready").read_text()
    assert node.wait() == status
    lines = (tmp_path / "told").read_text().splitlines()
    assert lines[:3] == ["node0 slots=2", "node1 slots=2", "node2 slots=2"]
    assert lines[3].endswith(
        f"--no_ssh --node_rank 1 --master_addr first --master_port 29500 {LAUNCH}/train.py recipe.toml "
        "--set name=a b"
    )
    hostfile = Path(lines[3].split()[lines[3].split().index("--hostfile") + 1])
    assert not hostfile.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_a_node_is_a_request_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    node = start_node(tmp_path, 75, at_once=False)
    (tmp_path / "ready").read_text()  # its ranks run
    node.send_signal(number)
    assert node.wait() == 75
    assert (tmp_path / "runs" / "x" / "stop").exists()


def test_a_node_without_its_variables_says_so(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("NODES", "NODE_RANK")}
    ended = subprocess.run(["bash", str(NODE)], env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: launch/node.sh needs NODES in the environment\n")


def slurm(folder: Path, status: int) -> tuple[int, list[str]]:
    """The batch script where srun ends with a status: its own, and the calls of Slurm's programs."""
    calls = folder / "calls"
    calls.write_text("")
    bodies = {"srun": f"exit {status}", "scontrol": '[ "$1" = show ] && echo node7 && echo node8'}
    for name, body in bodies.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" $MASTER_ADDR $MASTER_PORT >>{calls}\n{body}\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "41"}
    environment |= {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_CPUS_PER_TASK": "8", "MAX_FAILURES": "2"}
    environment["PYTHON"] = "python3"
    ended = subprocess.run(
        ["bash", str(SBATCH), "recipe.toml"], env=environment, cwd=folder, capture_output=True, check=False
    )
    return ended.returncode, calls.read_text().splitlines()


def test_slurm_starts_again_what_may_go_on(tmp_path: Path) -> None:
    again = "scontrol requeue 41 node7 20041"
    status, calls = slurm(tmp_path, 75)
    assert status == 75 and calls[-1] == again
    assert calls[1] == (
        "srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task=8 python3 launch/train.py recipe.toml --resume "
        "node7 20041"
    )
    for failure in (1, 137):
        assert slurm(tmp_path, failure)[1][-1] == again
    status, calls = slurm(tmp_path, 1)  # the third in a row
    assert status == 1 and again not in calls
    assert again in slurm(tmp_path, 75)[1]
    assert again in slurm(tmp_path, 1)[1]  # counted anew
    status, calls = slurm(tmp_path, 2)
    assert status == 2 and again not in calls
    assert slurm(tmp_path, 0) == (0, calls)
    assert not (tmp_path / "slurm-41.failures").exists()


def test_shell_scripts_have_no_known_mistakes() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    subprocess.run(["shellcheck", "--severity=warning", str(NODE), str(SBATCH)], check=True)
