"""What is deployed elsewhere, checked as far as it can be here: Ray's own cluster schema, KubeRay's
structure, and that the parts agree with each other and with the repository. Nothing here has been
run on a cloud or on Kubernetes."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from rarl.config import Config, load_config
from rarl.system.imports import import_object
from tests.kuberay import RayClusterSpec, RayJob, RayService, amount
from tests.runs import REPOSITORY

CLUSTERS = ("cluster.yaml", "deploy/cluster-onprem.yaml")
IN_IMAGE = "/home/ray/rarl/"
A2_HIGHGPU_1G = {"CPU": 12, "GPU": 1}  # one A100 with 40 GB, 85 GB of memory


def read(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def pinned_ray() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (version,) = (
        found[1] for d in project["dependencies"] if (found := re.match(r"ray\[.*\]==([\d.]+)", d))
    )
    return str(version)


def validate(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(cluster)
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_pass_rays_own_validation(name: str) -> None:
    prepared = validate(read(name))
    assert prepared["head_node_type"] in prepared["available_node_types"]
    for commands in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        assert sum("ray start" in command for command in commands) == 1
    assert "--head" in prepared["head_start_ray_commands"][-1]
    assert "$RAY_HEAD_IP" in prepared["worker_start_ray_commands"][-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(max_worker=3), "max_worker"),
        (lambda c: c.update(head_node_type="a100"), "head_node_type"),
        (lambda c: c["docker"].update(imag="x"), "imag"),
        (lambda c: c["provider"].update(type="gpc"), "gpc"),
    ],
)
def test_rays_validation_finds_mistakes(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    cluster = read("cluster.yaml")
    change(cluster)
    with pytest.raises(Exception, match=message):
        validate(cluster)


def test_the_cloud_cluster_grows_from_one_a100() -> None:
    cluster = read("cluster.yaml")
    head, worker = (cluster["available_node_types"][name] for name in ("a100_head", "a100_worker"))
    assert (worker["min_workers"], worker["max_workers"]) == (0, cluster["max_workers"])
    for node in (head, worker):
        assert node["node_config"]["machineType"] == "a2-highgpu-1g"
        assert node["resources"] == A2_HIGHGPU_1G
    assert pinned_ray() in cluster["docker"]["image"]


def test_the_onprem_cluster_is_its_machines() -> None:
    cluster = read("deploy/cluster-onprem.yaml")
    assert (
        cluster["min_workers"] == cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    )
    assert cluster["provider"]["head_ip"] not in cluster["provider"]["worker_ips"]


def job() -> RayJob:
    return RayJob.model_validate(read("deploy/rayjob.yaml"))


def service() -> RayService:
    return RayService.model_validate(read("deploy/rayservice.yaml"))


def clusters() -> list[RayClusterSpec]:
    return [job().spec.rayClusterSpec, service().spec.rayClusterConfig]


def test_versions_are_the_pinned_ones() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    tag = f"{project['version']}-ray{pinned_ray()}"
    for cluster in clusters():
        assert cluster.rayVersion == pinned_ray()
        assert {container.image.rsplit(":", 1)[1] for container in cluster.containers()} == {tag}
    dockerfile = (REPOSITORY / "deploy/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned_ray()}-" in dockerfile
    assert f"rarl:{tag}" in dockerfile
    assert IN_IMAGE.rstrip("/") in dockerfile


def test_pods_have_a_gpu_a_claim_and_shared_memory() -> None:
    (claim,) = yaml.safe_load_all((REPOSITORY / "deploy/runs-claim.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for cluster in clusters():
        for template in [
            cluster.headGroupSpec.template,
            *(group.template for group in cluster.workerGroupSpecs),
        ]:
            volumes = {volume.name: volume for volume in template.spec.volumes}
            (container,) = template.spec.containers
            limits = container.resources.limits
            assert limits["nvidia.com/gpu"] == "1"
            assert amount(limits["cpu"]) <= A2_HIGHGPU_1G["CPU"]
            assert amount(limits["memory"]) < 85e9
            mounts = {mount.mountPath: volumes[mount.name] for mount in container.volumeMounts}
            assert mounts["/mnt/runs"].persistentVolumeClaim is not None
            assert mounts["/mnt/runs"].persistentVolumeClaim.claimName == claim["metadata"]["name"]
            assert mounts["/dev/shm"].emptyDir is not None
            assert amount(mounts["/dev/shm"].emptyDir.sizeLimit) < amount(limits["memory"])


def job_config() -> Config:
    """The configuration that the job's command line makes, read from this repository instead of the
    image."""
    python, script, config, *overrides = shlex.split(job().spec.entrypoint)
    assert python == "python"
    assert (REPOSITORY / script.removeprefix(IN_IMAGE)).is_file()
    return load_config(REPOSITORY / config.removeprefix(IN_IMAGE), overrides)


def test_the_jobs_command_exists_and_its_cards_are_enough() -> None:
    config, cluster = job_config(), job().spec.rayClusterSpec
    assert config.run_dir.startswith("/mnt/runs/")
    assert str(config.data.train).startswith("/mnt/runs/")
    assert all(path.startswith("/mnt/runs/") for path in config.data.eval.values())
    (group,) = cluster.workerGroupSpecs
    assert cluster.enableInTreeAutoscaling
    cards = 1 + group.replicas
    assert config.rollout.num_actors <= cards  # one each, the first beside the trainer
    assert yaml.safe_load(job().spec.runtimeEnvYAML)["env_vars"]["HF_HOME"].startswith("/mnt/runs/")
    assert job().spec.shutdownAfterJobFinishes


@pytest.mark.slow  # imports Ray Serve LLM
def test_the_services_applications_parse_and_are_the_judges() -> None:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service().spec.serveConfigV2))
    local = ServeDeploySchema.model_validate(read("configs/judge/qwen2_5_7b.yaml"))
    assert [(app.name, app.import_path) for app in deployed.applications] == [
        (app.name, app.import_path) for app in local.applications
    ]
    for app in deployed.applications:
        assert callable(import_object(app.import_path))
    llm, judge = deployed.applications
    (model,) = llm.args["llm_configs"]
    assert judge.args["model"] == model["model_loading_config"]["model_id"]
    assert judge.args["url"] == f"http://127.0.0.1:8000{llm.route_prefix}/v1"
    wanted = sum(bundle.get("GPU", 0) for bundle in model["placement_group_config"]["bundles"])
    there = sum(
        amount(one.resources.limits["nvidia.com/gpu"])
        for one in service().spec.rayClusterConfig.containers()
    )
    assert wanted <= there
    ports = {
        port.name: port.containerPort
        for port in service().spec.rayClusterConfig.containers()[0].ports
    }
    assert ports["serve"] == 8000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["spec"].update(entryPoint="x"), "entryPoint"),
        (lambda m: m["spec"].update(submissionMode="Http"), "submissionMode"),
        (
            lambda m: m["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas=9),
            "maxReplicas",
        ),
        (
            lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"].pop("rayStartParams"),
            "rayStartParams",
        ),
        (
            lambda m: m["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
                "volumes"
            ].pop(),
            "no volume",
        ),
    ],
)
def test_the_structure_finds_mistakes(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    manifest = read("deploy/rayjob.yaml")
    change(manifest)
    with pytest.raises(ValidationError, match=message):
        RayJob.model_validate(manifest)


def test_commands_in_the_comments_name_files_that_exist() -> None:
    for name in (*CLUSTERS, "deploy/rayjob.yaml", "deploy/rayservice.yaml"):
        text = (REPOSITORY / name).read_text()
        named = re.findall(r"(?<![\w/])((?:jobs|configs|deploy)/[\w./-]+\.(?:py|yaml))", text)
        assert named, name
        for path in named:
            assert (REPOSITORY / path).is_file(), f"{name}: {path}"
    assert Path(REPOSITORY / "deploy/Dockerfile").is_file()
