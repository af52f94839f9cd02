"""The fields of Kubernetes, JobSet, Kubeflow Trainer and SkyPilot that the files in `launch/` use, no others.

From the types of batch/v1, jobset.x-k8s.io/v1alpha2 (0.10), trainer.kubeflow.org/v1alpha1 (2.2) and from
SkyPilot's schema of tasks. A key that is not here is an error, and so is a value outside of theirs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
Status = Annotated[int, Field(ge=0, le=255)]


class Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Metadata(Fields):
    name: Name | None = None
    labels: dict[str, str] = {}


class FieldRef(Fields):
    fieldPath: str


class ValueFrom(Fields):
    fieldRef: FieldRef


class Variable(Fields):
    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    valueFrom: ValueFrom | None = None


class Resources(Fields):
    limits: dict[str, Quantity] = {}
    requests: dict[str, Quantity] = {}


class VolumeMount(Fields):
    name: Name
    mountPath: str


class Container(Fields):
    name: Name
    image: str
    workingDir: str | None = None
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    resources: Resources = Resources()
    volumeMounts: list[VolumeMount] = []


class Claim(Fields):
    claimName: Name


class EmptyDir(Fields):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Fields):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class PodSpec(Fields):
    restartPolicy: Literal["Never", "OnFailure"]
    terminationGracePeriodSeconds: int
    containers: list[Container]
    volumes: list[Volume] = []


class PodTemplate(Fields):
    spec: PodSpec


class OnExitCodes(Fields):
    containerName: Name
    operator: Literal["In", "NotIn"]
    values: list[Status]


class OnPodCondition(Fields):
    type: Literal["DisruptionTarget"]
    status: Literal["True", "False", "Unknown"]


class PodFailureRule(Fields):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: OnExitCodes | None = None
    onPodConditions: list[OnPodCondition] = []


class PodFailurePolicy(Fields):
    rules: list[PodFailureRule]


class JobSpec(Fields):
    completionMode: Literal["Indexed", "NonIndexed"] = "Indexed"  # as JobSet has it
    completions: int = 1
    parallelism: int = 1
    backoffLimit: int
    podFailurePolicy: PodFailurePolicy
    template: PodTemplate


class JobTemplate(Fields):
    metadata: Metadata = Metadata()
    spec: JobSpec


class ReplicatedJob(Fields):
    name: Annotated[Name, Field(max_length=20)]
    replicas: int = 1
    template: JobTemplate


class FailureRule(Fields):
    name: Annotated[str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[
        Literal["PodFailurePolicy", "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"]
    ] = []
    onJobFailureMessagePatterns: list[str] = []
    targetReplicatedJobs: list[Name] = []


class FailurePolicy(Fields):
    maxRestarts: int
    restartStrategy: Literal["Recreate", "BlockingRecreate"] = "Recreate"
    rules: list[FailureRule]


class JobSetSpec(Fields):
    failurePolicy: FailurePolicy
    replicatedJobs: list[ReplicatedJob]


class JobSet(Fields):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec


class Torch(Fields):
    """Nothing since Trainer 2.2."""


class MLPolicy(Fields):
    numNodes: int
    torch: Torch


class JobSetTemplate(Fields):
    spec: JobSetSpec


class RuntimeSpec(Fields):
    mlPolicy: MLPolicy
    template: JobSetTemplate


class TrainingRuntime(Fields):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainingRuntime"]
    metadata: Metadata
    spec: RuntimeSpec


class RuntimeRef(Fields):
    apiGroup: Literal["trainer.kubeflow.org"]
    kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"]
    name: Name


class Trainer(Fields):
    numNodes: int
    image: str | None = None
    command: list[str] = []
    args: list[str] = []
    env: list[Variable] = []
    resourcesPerNode: Resources = Resources()


class TrainJobSpec(Fields):
    runtimeRef: RuntimeRef
    trainer: Trainer


class TrainJob(Fields):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec


class JobRecovery(Fields):
    strategy: str | None = None
    max_restarts_on_errors: Annotated[int, Field(ge=0)] = 0
    recover_on_exit_codes: Annotated[list[Status], Field(max_length=256)] = []


class SkyResources(Fields):
    accelerators: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+:[0-9]+$")]
    use_spot: bool = False
    job_recovery: JobRecovery = JobRecovery()


class SkyTask(Fields):
    name: Name
    num_nodes: Annotated[int, Field(ge=1)]
    workdir: str
    resources: SkyResources
    volumes: dict[str, str] = {}
    setup: str
    run: str


Manifest = Annotated[JobSet | TrainingRuntime | TrainJob, Field(discriminator="kind")]


def read_manifests(path: Path) -> list[JobSet | TrainingRuntime | TrainJob]:
    """The documents of a file for Kubernetes. Raises pydantic.ValidationError."""
    adapter: TypeAdapter[Any] = TypeAdapter(Manifest)
    return [adapter.validate_python(document) for document in yaml.safe_load_all(path.read_text())]


def read_task(path: Path) -> SkyTask:
    """Raises pydantic.ValidationError."""
    return SkyTask.model_validate(yaml.safe_load(path.read_text()))
