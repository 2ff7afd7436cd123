"""Every overlay and component renders, is valid for Kubernetes, and keeps the rules that no schema holds."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import manifests
from tests.deploy.manifests import K8S, Object

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="manifests are rendered by kubectl")

OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())
OTHERS = {"kueue": ["training-job", "kueue"]}
"""Components that are nothing without another."""

CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute", "BackendTrafficPolicy"}
"""Kinds that clusters have only with their operators, and the validator has no schema of."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Object]]:
    found = {name: manifests.render(K8S / "overlays" / name) for name in OVERLAYS}
    for name in COMPONENTS:
        found[name] = manifests.render_with(OTHERS.get(name, [name]), tmp_path_factory.mktemp("k8s") / name)
    return found


@pytest.mark.parametrize("name", OVERLAYS + COMPONENTS)
def test_it_keeps_the_rules(rendered: dict[str, list[Object]], name: str) -> None:
    assert [wrong for rule in manifests.RULES for wrong in rule(rendered[name])] == []


def test_production_is_pinned(rendered: dict[str, list[Object]]) -> None:
    assert manifests.images(rendered["prod-gpu"]) == []
    assert manifests.images(rendered["dev-cpu"]) == ["tonearm:dev is no digest"]


@pytest.mark.parametrize("name", OVERLAYS + COMPONENTS)
def test_it_is_valid(rendered: dict[str, list[Object]], name: str, tmp_path: Path) -> None:
    pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    known = [each for each in rendered[name] if each["kind"] not in CUSTOM]
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all(known))
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", "1.34", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_component_does_what_it_says(rendered: dict[str, list[Object]]) -> None:
    def service(name: str) -> Object:
        (found,) = (each for each in manifests.named(rendered[name], "Deployment"))
        spec: Object = found["spec"]["template"]["spec"]
        return spec

    (gpu,) = service("gpu")["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    (postgres,) = service("postgres")["containers"]
    assert postgres["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "tonearm-database"
    sync = service("registry-sync")
    assert sync["initContainers"][0]["restartPolicy"] == "Always"
    mounts = {mount["mountPath"]: mount["name"] for mount in sync["containers"][0]["volumeMounts"]}
    assert mounts["/registry"] == "registry-copy"
    (volume,) = (each for each in service("image-volume")["volumes"] if each["name"] == "registry")
    assert volume == {"name": "registry", "image": {"reference": "tonearm-adapters", "pullPolicy": "IfNotPresent"}}
    (job,) = manifests.named(rendered["kueue"], "Job")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] and job["spec"]["suspend"] is True
    (scaler,) = manifests.named(rendered["hpa"], "HorizontalPodAutoscaler")
    (scaled,) = manifests.named(rendered["keda"], "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] == scaled["spec"]["scaleTargetRef"]["name"] == "tonearm"
    (ingress,) = manifests.named(rendered["ingress-by-adapter"], "Ingress")
    assert "$http_x_adapter" in ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/upstream-hash-by"]


def _container(objects: list[Object]) -> Object:
    (deployment,) = manifests.named(objects, "Deployment")
    found: Object = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def _spec(objects: list[Object]) -> Object:
    (deployment,) = manifests.named(objects, "Deployment")
    found: Object = deployment["spec"]["template"]["spec"]
    return found


def _set(place: Callable[[list[Object]], Object], key: str, value: Any) -> Callable[[list[Object]], None]:
    def change(objects: list[Object]) -> None:
        place(objects)[key] = value

    return change


def _settings(objects: list[Object]) -> Object:
    (found,) = (
        each["data"]
        for each in manifests.named(objects, "ConfigMap")
        if each["metadata"]["name"].startswith("tonearm-set")
    )
    data: Object = found
    return data


def _service(objects: list[Object]) -> Object:
    found: Object = manifests.named(objects, "Service")[0]["spec"]
    return found


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (manifests.selectors, _set(_service, "selector", {"app.kubernetes.io/name": "tone-arm"})),
        (manifests.ports, _set(_service, "ports", [{"name": "http", "port": 80, "targetPort": "web"}])),
        (manifests.quantities, _set(_container, "resources", {"requests": {"cpu": "2", "memory": "1.5 GB"}})),
        (manifests.quantities, _set(_container, "resources", {"requests": {"cpu": "2", "memory": "1Gi"}})),
        (manifests.restricted, _set(_container, "securityContext", {"allowPrivilegeEscalation": False})),
        (manifests.restricted, _set(_spec, "securityContext", {"runAsNonRoot": True})),
        (manifests.restricted, _set(_spec, "enableServiceLinks", True)),
        (manifests.volumes, _set(_container, "volumeMounts", [{"name": "registry", "mountPath": "/registry"}])),
        (manifests.volumes, _set(_spec, "volumes", [])),
        (manifests.settings, _set(_settings, "TONEARM_MAX_RESIDENT_ADAPTER", "5")),
        (manifests.settings, _set(_settings, "TONEARM_DRAIN_DELAY_S", "soon")),
        (manifests.endings, _set(_spec, "terminationGracePeriodSeconds", 30)),
        (manifests.endings, _set(_container, "lifecycle", {"preStop": {"exec": {"command": ["sleep", "40"]}}})),
    ],
)
def test_each_rule_can_fail(
    rendered: dict[str, list[Object]],
    rule: Callable[[list[Object]], list[str]],
    change: Callable[[list[Object]], None],
) -> None:
    broken = copy.deepcopy(rendered["prod-gpu"])
    change(broken)
    assert rule(broken)
