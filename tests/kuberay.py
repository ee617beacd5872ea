"""The part of KubeRay's resources (ray.io/v1) and of Kubernetes' pods that the manifests use.

After the API reference at https://ray-project.github.io/kuberay/reference/api/. What is not here is
refused, so that a misspelt key is found.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")]
UNITS = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: Name
    labels: dict[str, str] = {}


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]

    @model_validator(mode="after")
    def no_request_above_its_limit(self) -> Resources:
        for key, wanted in self.requests.items():
            if key in self.limits and amount(wanted) > amount(self.limits[key]):
                raise ValueError(f"{key}: {wanted} requested, limit {self.limits[key]}")
        if self.requests.get("nvidia.com/gpu") != self.limits.get("nvidia.com/gpu"):
            raise ValueError("nvidia.com/gpu: Kubernetes wants request and limit to be equal")
        return self


class Port(Strict):
    containerPort: Annotated[int, Field(gt=0, lt=65536)]
    name: Annotated[str, StringConstraints(max_length=15)]


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, StringConstraints(pattern="^/")]


class Container(Strict):
    name: Name
    image: Annotated[str, StringConstraints(pattern=r"^[^\s:]+(:\d+)?[^\s:]*:[\w.-]+$")]
    ports: list[Port] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: Name


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None

    @model_validator(mode="after")
    def one_source(self) -> Volume:
        if (self.persistentVolumeClaim is None) == (self.emptyDir is None):
            raise ValueError(f"volume {self.name}: exactly one source")
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    nodeSelector: dict[str, str] = {}
    tolerations: list[Toleration] = []
    volumes: list[Volume] = []

    @model_validator(mode="after")
    def every_mount_has_its_volume(self) -> PodSpec:
        known = {volume.name for volume in self.volumes}
        for container in self.containers:
            for mount in container.volumeMounts:
                if mount.name not in known:
                    raise ValueError(f"container {container.name}: no volume '{mount.name}'")
        return self


class PodTemplate(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    groupName: Name
    replicas: Annotated[int, Field(ge=0)] = 0
    minReplicas: Annotated[int, Field(ge=0)] = 0
    maxReplicas: Annotated[int, Field(ge=0)] = 2**31 - 1
    rayStartParams: dict[str, str] = {}
    template: PodTemplate

    @model_validator(mode="after")
    def replicas_in_bounds(self) -> WorkerGroup:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(
                f"{self.groupName}: replicas must lie between minReplicas and maxReplicas"
            )
        return self


class AutoscalerOptions(Strict):
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    idleTimeoutSeconds: Annotated[int, Field(ge=0)] = 60


class RayClusterSpec(Strict):
    rayVersion: str
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []

    def containers(self) -> list[Container]:
        templates = [
            self.headGroupSpec.template,
            *(group.template for group in self.workerGroupSpecs),
        ]
        return [container for template in templates for container in template.spec.containers]


class RayJobSpec(Strict):
    entrypoint: str
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode"] = "K8sJobMode"
    runtimeEnvYAML: str = ""
    backoffLimit: Annotated[int, Field(ge=0)] = 0
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)] = 0
    rayClusterSpec: RayClusterSpec


class RayServiceSpec(Strict):
    serveConfigV2: str
    rayClusterConfig: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec
