"""Rendered manifests, and what has to hold of them that no schema says. Each rule says what is wrong, in sentences."""

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from adapters.errors import SettingsError
from service.settings import PREFIX, Settings

K8S = Path(__file__).parents[2] / "k8s"
Object = dict[str, Any]

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
WRITABLE = ("/data", "/tmp")
"""What the service writes: the database, and the run directory with the metrics."""


def render(directory: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def render_with(components: Iterable[str], place: Path) -> list[Object]:
    """The base with these components."""
    place.mkdir(parents=True)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(K8S / "base", place)],
        "components": [os.path.relpath(K8S / "components" / name, place) for name in components],
    }
    (place / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return render(place)


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """(what it is, pod template) of everything that makes pods."""
    for each in objects:
        if "template" in each.get("spec", {}):
            yield f"{each['kind']} {each['metadata']['name']}", each["spec"]["template"]


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def named(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def _matched(each: Object) -> Object | None:
    """Labels that an object selects by; None where its kind selects nothing, {} where it should."""
    spec = each.get("spec", {})
    if each["kind"] == "Service":
        return dict(spec.get("selector", {}))
    if each["kind"] == "NetworkPolicy":
        return dict(spec.get("podSelector", {}).get("matchLabels", {}))
    if each["kind"] in ("Deployment", "PodDisruptionBudget", "ServiceMonitor"):
        return dict(spec.get("selector", {}).get("matchLabels", {}))
    return None


def selectors(objects: list[Object]) -> list[str]:
    """Selectors that select nothing."""
    labels = [template["metadata"]["labels"] for _, template in pods(objects)]
    services = [service["metadata"].get("labels", {}) for service in named(objects, "Service")]
    wanted = [(each, _matched(each), services if each["kind"] == "ServiceMonitor" else labels) for each in objects]
    wanted = [(each, selector, among) for each, selector, among in wanted if selector is not None]
    for _, template in pods(objects):
        for spread in template["spec"].get("topologySpreadConstraints", []):
            where = {"kind": "spread", "metadata": {"name": ""}}
            wanted.append((where, spread["labelSelector"]["matchLabels"], labels))
    return [
        f"{each['kind']} {each['metadata']['name']} selects {selector}, which nothing has"
        for each, selector, among in wanted
        if not selector or not any(selector.items() <= one.items() for one in among)
    ]


def ports(objects: list[Object]) -> list[str]:
    """Ports that are named and not there."""
    there = {port["name"] for _, template in pods(objects) for c in containers(template) for port in c.get("ports", [])}
    services = {port["name"] for service in named(objects, "Service") for port in service["spec"]["ports"]}
    wrong = []
    for _, template in pods(objects):
        for container in containers(template):
            own = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container and container[probe]["httpGet"]["port"] not in own:
                    wrong.append(f"{container['name']}: {probe} asks a port that the container has not")
    for service in named(objects, "Service"):
        wrong += [
            f"Service: target {p['targetPort']}" for p in service["spec"]["ports"] if p["targetPort"] not in there
        ]
    for policy in named(objects, "NetworkPolicy"):
        asked = [port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]]
        wrong += [f"NetworkPolicy: port {port}" for port in asked if port not in there]
    for monitor in named(objects, "ServiceMonitor"):
        wrong += [f"ServiceMonitor: {e['port']}" for e in monitor["spec"]["endpoints"] if e["port"] not in services]
    for ingress in named(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            backends = [path["backend"]["service"]["port"]["name"] for path in rule["http"]["paths"]]
            wrong += [f"Ingress: port {name}" for name in backends if name not in services]
    return wrong


def quantities(objects: list[Object]) -> list[str]:
    """Resources that are no quantities, are not asked for, or whose memory has no limit."""
    wrong = []
    for where, template in pods(objects):
        for container in containers(template):
            resources = container.get("resources", {})
            for side in ("requests", "limits"):
                for name, value in resources.get(side, {}).items():
                    if not _QUANTITY.fullmatch(str(value)):
                        wrong.append(f"{where} {container['name']}: {side}.{name} is {value!r}")
            if not {"cpu", "memory"} <= resources.get("requests", {}).keys():
                wrong.append(f"{where} {container['name']} requests no cpu or no memory")
            if "memory" not in resources.get("limits", {}):
                wrong.append(f"{where} {container['name']} has no limit of memory")
    return wrong


def restricted(objects: list[Object]) -> list[str]:
    """What the Pod Security profile `restricted` refuses, and what we ask beyond it."""
    wrong = []
    for where, template in pods(objects):
        spec, pod = template["spec"], template["spec"].get("securityContext", {})
        if pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            wrong.append(f"{where}: no seccomp profile")
        if pod.get("runAsNonRoot") is not True or not isinstance(pod.get("runAsUser"), int) or pod["runAsUser"] < 1:
            wrong.append(f"{where}: not a numeric user other than root")
        if spec.get("automountServiceAccountToken") is not False:
            wrong.append(f"{where}: has a service account's token")
        if spec.get("enableServiceLinks") is not False:
            wrong.append(f"{where}: a service called tonearm would set TONEARM_PORT")
        if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            wrong.append(f"{where}: shares the host's namespaces")
        for container in containers(template):
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                wrong.append(f"{where} {container['name']}: may become more")
            if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
                wrong.append(f"{where} {container['name']}: has capabilities")
            if own.get("readOnlyRootFilesystem") is not True:
                wrong.append(f"{where} {container['name']}: writes its root file system")
        wrong += [f"{where}: volume {v['name']} is the host's" for v in spec.get("volumes", []) if "hostPath" in v]
    return wrong


def volumes(objects: list[Object]) -> list[str]:
    """Mounts without a volume, volumes without a mount or an object, and no place for what the service writes."""
    claims = {each["metadata"]["name"] for each in named(objects, "PersistentVolumeClaim")}
    maps = {each["metadata"]["name"] for each in named(objects, "ConfigMap")}
    wrong = []
    for where, template in pods(objects):
        there = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        mounted = {mount["name"] for container in containers(template) for mount in container.get("volumeMounts", [])}
        wrong += [f"{where}: {name} is mounted and not there" for name in sorted(mounted - there.keys())]
        wrong += [f"{where}: {name} is there and not mounted" for name in sorted(there.keys() - mounted)]
        for volume in there.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                wrong.append(f"{where}: no claim {claim}")
            config = volume.get("configMap", {}).get("name")
            if config is not None and config not in maps:
                wrong.append(f"{where}: no ConfigMap {config}")
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                wrong.append(f"{where}: {volume['name']} may fill the node")
        for container in containers(template):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", []) if not mount.get("readOnly")]
            if container["name"] == "tonearm":
                wrong += [f"{where}: {place} cannot be written" for place in WRITABLE if place not in paths]
            for source in container.get("envFrom", []):
                name = source.get("configMapRef", {}).get("name")
                if name is not None and name not in maps:
                    wrong.append(f"{where}: no ConfigMap {name}")
    return wrong


def settings(objects: list[Object]) -> list[str]:
    """Keys that are no settings, and values that the service would refuse."""
    wrong = []
    for config in named(objects, "ConfigMap"):
        given = {key: value for key, value in config["data"].items() if key.startswith(PREFIX)}
        fields = {key: key.removeprefix(PREFIX).lower() for key in given}
        wrong += [f"{key} is no setting" for key, field in fields.items() if field not in Settings.model_fields]
        known = {field: given[key] for key, field in fields.items() if field in Settings.model_fields}
        if known:
            try:
                # Keys come from a secret, which is not here.
                Settings(**{"api_keys": "a-key-of-somebody", **known})
            except (ValidationError, SettingsError) as error:
                wrong.append(str(error))
    return wrong


def endings(objects: list[Object]) -> list[str]:
    """What would be cut off: grace > preStop + drain delay + drain timeout, and drain timeout > preStop."""
    given = {key: value for config in named(objects, "ConfigMap") for key, value in config["data"].items()}
    drain_s = float(given[f"{PREFIX}DRAIN_TIMEOUT_S"]), float(given[f"{PREFIX}DRAIN_DELAY_S"])
    wrong = []
    for deployment in named(objects, "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        (container,) = (each for each in spec["containers"] if each["name"] == "tonearm")
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        pause_s, grace_s = float(command[1]), float(spec["terminationGracePeriodSeconds"])
        if not grace_s > sum(drain_s) + pause_s:
            wrong.append(f"killed after {grace_s:g} s, but may take {sum(drain_s) + pause_s:g} s")
        if not drain_s[0] > pause_s > 0:
            wrong.append(f"preStop sleeps {pause_s:g} s, drain takes {drain_s[0]:g} s")
    return wrong


def images(objects: list[Object]) -> list[str]:
    """Images of production that are not named by what is in them."""
    found = [container["image"] for _, template in pods(objects) for container in containers(template)]
    return [f"{image} is no digest" for image in found if not re.search(r"@sha256:[0-9a-f]{64}$", image)]


RULES = (selectors, ports, quantities, restricted, volumes, settings, endings)
