"""deploy/kubernetes: valid by the schemas of Kubernetes, and in agreement with the settings and the image.

No cluster is needed, and none was available: docs/kubernetes.md says what that leaves open.
"""

import functools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from checks.testbed.processes import ROOT
from ingest.server import refuse_public
from pipeline.settings import Settings
from tasks.forced_shutdown import end_seconds_max

pytestmark = pytest.mark.timeout(600)  # seconds of CPU, on a machine that may do other things

FOLDER = ROOT / "deploy" / "kubernetes"
BASE = FOLDER / "base"
VERSIONS = ("1.29", "1.37")  # of Kubernetes: the oldest and the newest that are checked
SECRETS = "/run/secrets/sluice"
COMPONENTS = ("ingest", "worker", "control", "beat", "migrate")
MEASURED = ("ingest", "worker", "control")  # they have metrics
METRICS_PORT = 9101
Object = dict[str, Any]
Missing = Callable[[str], None]


def documents(path: Path) -> list[Object]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


@functools.cache
def base() -> tuple[Object, ...]:
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    assert sorted(names) == sorted(path.name for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")
    return tuple(one for name in names for one in documents(BASE / name))


def scaled_object() -> Object:
    [found] = documents(FOLDER / "keda" / "scaledobject.yaml")
    return found


def of_kind(kind: str) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in base() if one["kind"] == kind}


def workload(component: str) -> Object:
    return of_kind("Job" if component == "migrate" else "Deployment")[f"sluice-{component}"]


def pod(component: str) -> Object:
    found: Object = workload(component)["spec"]["template"]["spec"]
    return found


def container(component: str) -> Object:
    [found] = pod(component)["containers"]
    return dict(found)


def shared_settings() -> dict[str, str]:
    lines = [line for line in (BASE / "settings.env").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def environment(component: str) -> dict[str, str]:
    """The variables of a container, as Kubernetes would set them."""
    found = container(component)
    assert found["envFrom"] == [{"configMapRef": {"name": "sluice-settings"}}]
    return {**shared_settings(), **{one["name"]: one["value"] for one in found.get("env", [])}}


def secret_keys(component: str) -> set[str]:
    """The files below SECRETS that the settings of a container name."""
    paths = [value for name, value in environment(component).items() if name.endswith("_FILE")]
    assert all(Path(path).parent == Path(SECRETS) for path in paths)
    return {Path(path).name for path in paths}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    texts = {
        "database-url": "postgresql://sluice_app:pg-secret@db.example:5432/sluice?sslmode=verify-full",
        "migrate-database-url": "postgresql://sluice:pg-secret@db.example:5432/sluice?sslmode=verify-full",
        "redis-url": "redis://sluice-worker:redis-secret@control.example:6379/0",
        "event-log-url": "kafka://broker1.example:9092,broker2.example:9092",
    }
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")
    return folder


def settings_of(component: str, secrets: Path) -> Settings:
    return Settings.from_environ(
        {name: value.replace(SECRETS, str(secrets)) for name, value in environment(component).items()}
    )


def concurrency(component: str) -> int:
    words = container(component)["args"]
    return int(words[words.index("--concurrency") + 1])


# --- What Kubernetes and KEDA make of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_and_has_no_field_that_is_unknown(version: str) -> None:
    for one in base():
        kubernetes_validate.validate(one, version, strict=True)


def test_an_object_with_a_mistake_is_refused() -> None:
    # The check above would be worth nothing if it accepted everything
    changed = {**workload("worker"), "spec": {**workload("worker")["spec"], "replcas": 3}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replcas"):
        kubernetes_validate.validate(changed, VERSIONS[-1], strict=True)


# KEDA's CRD is in no package that could be used here. These are the fields of its reference that are used.
_TEXT = {"type": "string", "minLength": 1}
SCALED_OBJECT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name", "labels"],
            "properties": {"name": _TEXT, "namespace": _TEXT, "labels": {"type": "object"}},
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["scaleTargetRef", "triggers"],
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["name"],
                    "properties": {"name": _TEXT},
                },
                "minReplicaCount": {"type": "integer", "minimum": 1},
                "maxReplicaCount": {"type": "integer", "minimum": 1},
                "pollingInterval": {"type": "integer", "minimum": 1},
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["type", "metadata"],
                        "properties": {
                            "type": {"const": "prometheus"},
                            "metricType": {"enum": ["AverageValue", "Value"]},
                            "metadata": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["serverAddress", "query", "threshold"],
                                # KEDA takes nothing but texts here
                                "properties": {
                                    "serverAddress": {"type": "string", "pattern": "^https?://"},
                                    "query": _TEXT,
                                    "threshold": {"type": "string", "pattern": r"^[0-9.]+$"},
                                    "ignoreNullValues": {"enum": ["true", "false"]},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}


def test_the_scaled_object_has_the_fields_of_keda() -> None:
    found = scaled_object()
    jsonschema.validate(found, SCALED_OBJECT)
    with pytest.raises(jsonschema.ValidationError, match="maxReplicas"):
        jsonschema.validate({**found, "spec": {**found["spec"], "maxReplicas": 3}}, SCALED_OBJECT)


# --- The settings, and the programs behind them ----------------------------------------------------------------------


def test_every_variable_is_a_setting() -> None:
    known = {field.name.upper() for field in fields(Settings)}
    in_files = {f"{field.name.upper()}_FILE" for field in fields(Settings) if field.metadata["is_secret"]}
    for component in COMPONENTS:
        assert set(environment(component)) <= known | in_files, component


def test_no_secret_is_in_a_manifest() -> None:
    secret = {field.name.upper() for field in fields(Settings) if field.metadata["is_secret"]}
    for component in COMPONENTS:
        assert not secret & set(environment(component)), component
    for path in FOLDER.rglob("*"):
        if path.is_file():
            assert not re.search(r"(?:postgresql|rediss?|kafka)://|PASSWORD=", path.read_text()), path


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_program_takes_its_settings(component: str, secrets: Path) -> None:
    settings = settings_of(component, secrets)
    assert settings.database_url.startswith("postgresql://sluice_app:")
    assert bool(settings.migrate_database_url) is (component == "migrate")
    assert settings.rate_policy == "drain_time"
    if component == "ingest":
        refuse_public(settings)
        assert (settings.ingest_host, settings.ingest_keys) == ("0.0.0.0", True)
        assert (settings.operator_host, settings.operator_port) == ("127.0.0.1", 8081)


def test_a_pod_gets_the_secrets_that_it_names_and_no_other() -> None:
    for component in COMPONENTS:
        [volume] = [one for one in pod(component)["volumes"] if one["name"] == "secrets"]
        named = [volume["secret"]["secretName"]] if "secret" in volume else []
        named += [one["secret"]["name"] for one in volume.get("projected", {}).get("sources", [])]
        mode = volume.get("secret", volume.get("projected"))["defaultMode"]
        assert mode == 0o440, component  # readable for the group of the pod, fsGroup
        expected = {
            "ingest": ["sluice-ingest"],
            "migrate": ["sluice-worker", "sluice-migrate"],
        }.get(component, ["sluice-worker"])
        assert named == expected, component


def test_the_example_and_the_page_name_every_secret() -> None:
    example = yaml.safe_load((FOLDER / "example" / "kustomization.yaml").read_text())
    made = {one["name"]: {file.partition("=")[0] for file in one["files"]} for one in example["secretGenerator"]}
    assert made["sluice-ingest"] == secret_keys("ingest")
    for component in ("worker", "control", "beat"):
        assert made["sluice-worker"] == secret_keys(component)
    assert made["sluice-worker"] | made["sluice-migrate"] == secret_keys("migrate")
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    for name, keys in made.items():
        [row] = re.findall(rf"^ *\| `{name}` \|.*-url.*$", page, re.MULTILINE)
        assert set(re.findall(r"`([a-z-]+-url)`", row)) == keys


def test_ports_and_paths_are_ones_that_the_programs_serve(secrets: Path) -> None:
    served = yaml.safe_load((ROOT / "ingest" / "openapi" / "openapi.yaml").read_text())["paths"]
    for component in COMPONENTS:
        settings, found = settings_of(component, secrets), container(component)
        is_ingest = component == "ingest"
        metrics_port = settings.ingest_metrics_port if is_ingest else settings.worker_metrics_port
        ports = {one["name"]: one["containerPort"] for one in found.get("ports", [])}
        expected = {"http": settings.ingest_port} if is_ingest else {}
        assert ports == expected | ({"metrics": metrics_port} if component in MEASURED else {}), component
        # Workers take no requests, so nobody asks whether they are ready; Beat and the migration have no port.
        wanted = {"readinessProbe"} if is_ingest else set()
        wanted |= {"livenessProbe", "startupProbe"} if component in MEASURED else set()
        assert {name for name in found if name.endswith("Probe")} == wanted, component
        for name in wanted:
            asked = found[name]["httpGet"]
            assert asked["port"] == ("http" if is_ingest else "metrics")
            assert asked["path"] in served, f"{component}: {asked['path']}"
        assert settings.metrics_host == "0.0.0.0"
        assert metrics_port == METRICS_PORT
    assert container("ingest")["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container("ingest")["livenessProbe"]["httpGet"]["path"] == "/healthz"
    [port] = of_kind("Service")["sluice-ingest"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (8080, "http")


def test_they_run_what_the_image_has() -> None:
    image = (ROOT / "Dockerfile").read_text()
    [user] = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)
    assert "ENTRYPOINT" not in image  # `args` would be its arguments
    for component in COMPONENTS:
        found, its_pod = container(component), pod(component)
        assert found["image"] == "sluice"  # what the example replaces
        context = its_pod["securityContext"]
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
        assert context["fsGroup"] == context["runAsGroup"]
        mounted = {one["mountPath"] for one in found["volumeMounts"]}
        assert mounted == {SECRETS, "/etc/sluice/ca", "/tmp"}  # nothing over /app, /venv
        assert found["args"][0] in ("python", "celery")
        module = found["args"][found["args"].index("-m" if found["args"][0] == "python" else "-A") + 1]
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
        assert f"COPY {module.partition('.')[0]} ./" in image
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for component in COMPONENTS:
        # The same programs, but for the number of processes
        said = compose[component]["command"]
        words = said.split() if isinstance(said, str) else list(said)
        ours = list(container(component)["args"])
        for command in (words, ours):
            if "--concurrency" in command:
                del command[command.index("--concurrency") + 1]
        assert [re.sub(r"\$\{.*", "", one) for one in words if not one.endswith("}")] == ours, component


# --- Numbers that belong together ------------------------------------------------------------------------------------


def test_there_is_a_process_for_every_drain(secrets: Path) -> None:
    settings = settings_of("worker", secrets)
    processes = workload("worker")["spec"]["replicas"] * concurrency("worker")
    assert processes >= settings.log_partitions + 2
    scaled = scaled_object()["spec"]
    assert scaled["minReplicaCount"] == workload("worker")["spec"]["replicas"]
    cores = int(container("worker")["resources"]["limits"]["cpu"])
    assert scaled["maxReplicaCount"] * cores == settings.log_partitions  # a core for each drain


def test_a_process_without_redis_knows_how_many_there_may_be(secrets: Path) -> None:
    scaler = of_kind("HorizontalPodAutoscaler")["sluice-ingest"]["spec"]
    surge = workload("ingest")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    assert settings_of("ingest", secrets).ingest_processes_max == scaler["maxReplicas"] + surge
    assert scaler["minReplicas"] >= 2
    assert "replicas" not in workload("ingest")["spec"]  # kubectl apply would set it again and again
    [metric] = scaler["metrics"]
    assert (metric["type"], metric["resource"]["name"]) == ("Resource", "cpu")
    millicores = int(metric["resource"]["target"]["averageValue"].removesuffix("m"))
    assert millicores < 1000 * int(container("ingest")["resources"]["limits"]["cpu"])


def test_keda_asks_for_a_metric_that_the_control_worker_has(secrets: Path) -> None:
    [trigger] = scaled_object()["spec"]["triggers"]
    page = (ROOT / "docs" / "metrics.md").read_text()
    section = page.split("\n## Control worker", 1)[1].split("\n## ", 1)[0]
    names = re.findall(r"\b(?:sluice|rate_limiter|kafka|redis)_[a-z_]+", trigger["metadata"]["query"])
    assert names == ["sluice_drain_seconds"]
    assert f"| `{names[0]}` | gauge |" in section
    # drain_time holds this near its target under overload: at the target, workers must be added.
    settings = settings_of("worker", secrets)
    assert settings.rate_policy == "drain_time"
    assert trigger["metricType"] == "Value"
    assert 0.2 * settings.drain_target_seconds < float(trigger["metadata"]["threshold"]) < settings.drain_target_seconds


def test_a_pod_may_take_as_long_to_end_as_its_program_may_need(secrets: Path) -> None:
    grace = {component: pod(component)["terminationGracePeriodSeconds"] for component in COMPONENTS}
    settings = settings_of("worker", secrets)
    assert grace["worker"] > end_seconds_max(settings, is_control=False)
    assert grace["control"] > end_seconds_max(settings, is_control=True)
    command = container("ingest")["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    assert grace["ingest"] > float(command[1]) + settings.stop_seconds_max


# --- Rights, and what survives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_meets_the_restricted_standard_and_is_bounded(component: str) -> None:
    found, its_pod = container(component), pod(component)
    assert its_pod["securityContext"]["runAsNonRoot"] is True
    assert its_pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert found["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        assert name not in its_pod
    assert its_pod["automountServiceAccountToken"] is False
    assert of_kind("ServiceAccount")[its_pod["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert not [one for one in base() if "Role" in one["kind"]]
    for bound in ("requests", "limits"):
        assert set(found["resources"][bound]) == {"cpu", "memory"}
    kinds = {next(key for key in volume if key != "name") for volume in its_pod["volumes"]}
    assert kinds <= {"secret", "projected", "configMap", "emptyDir"}
    # A variable of a Service must not become a setting: that of a Service `ingest` is INGEST_PORT=tcp://…
    assert its_pod["enableServiceLinks"] is False


def test_objects_find_their_pods() -> None:
    for component in COMPONENTS[:-1]:
        labels = {"app.kubernetes.io/name": "sluice", "app.kubernetes.io/component": component}
        spec = workload(component)["spec"]
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"] == labels
    for component in ("ingest", "worker"):
        budget = of_kind("PodDisruptionBudget")[f"sluice-{component}"]["spec"]
        assert budget["selector"]["matchLabels"] == workload(component)["spec"]["selector"]["matchLabels"]
        assert budget["maxUnavailable"] == 1
    assert (
        of_kind("Service")["sluice-ingest"]["spec"]["selector"]
        == (workload("ingest")["spec"]["selector"]["matchLabels"])
    )
    assert of_kind("HorizontalPodAutoscaler")["sluice-ingest"]["spec"]["scaleTargetRef"]["name"] == "sluice-ingest"
    assert scaled_object()["spec"]["scaleTargetRef"]["name"] == "sluice-worker"


def test_one_of_a_kind_is_never_two_and_comes_back_soon(secrets: Path) -> None:
    hold = settings_of("control", secrets).rate_hold_seconds
    for component in ("control", "beat"):
        spec = workload(component)["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
        # A budget for a single pod would block every drain of its node
        assert f"sluice-{component}" not in of_kind("PodDisruptionBudget")
        waits = {one["key"]: one["tolerationSeconds"] for one in pod(component)["tolerations"]}
        assert set(waits) == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
        assert max(waits.values()) < hold
    for component in ("worker", "control"):
        assert pod(component)["shareProcessNamespace"] is True  # something must reap the children of a killed one


def _selected(policy: Object) -> set[str]:
    """The components that a policy is about."""
    selector = policy["spec"]["podSelector"]
    found = set(COMPONENTS)
    if "app.kubernetes.io/component" in selector["matchLabels"]:
        found &= {selector["matchLabels"]["app.kubernetes.io/component"]}
    for one in selector.get("matchExpressions", []):
        assert (one["key"], one["operator"]) == ("app.kubernetes.io/component", "In")
        found &= set(one["values"])
    assert selector["matchLabels"]["app.kubernetes.io/name"] == "sluice"
    return found


def _allowed(direction: str) -> Iterator[tuple[str, int, Object | None]]:
    """(component, port, peer) of every rule of all policies."""
    for policy in of_kind("NetworkPolicy").values():
        for rule in policy["spec"].get(direction, []):
            for component in _selected(policy):
                for port in rule["ports"]:
                    yield component, port["port"], rule.get("from" if direction == "ingress" else "to")


def test_nobody_talks_to_anybody_else() -> None:
    closed = of_kind("NetworkPolicy")["sluice-nothing-else"]["spec"]
    assert (closed["policyTypes"], set(closed) & {"ingress", "egress"}) == (["Ingress", "Egress"], set())
    assert _selected(of_kind("NetworkPolicy")["sluice-nothing-else"]) == set(COMPONENTS)
    # In: events from everywhere, metrics from Prometheus, and what operators see from nowhere
    entered = list(_allowed("ingress"))
    assert {(component, port) for component, port, peer in entered if peer is None} == {("ingest", 8080)}
    inside = {(component, port) for component, port, peer in entered if peer is not None}
    assert inside == {(component, METRICS_PORT) for component in MEASURED}
    # Out: names for all, and the servers of each
    left: dict[str, set[int]] = {}
    for component, port, _ in _allowed("egress"):
        left.setdefault(component, set()).add(port)
    queues = {53, 6379, 6380, 9092, 9093}
    assert left == {
        "ingest": queues | {5432},
        "worker": queues | {5432},
        "control": queues | {5432},
        "beat": queues,
        "migrate": {53, 5432},
    }


# --- Prometheus, and what kubectl makes of the example ---------------------------------------------------------------


def test_prometheus_finds_the_pods_under_the_jobs_that_the_rules_name(tmp_path: Path, missing: Missing) -> None:
    path = FOLDER / "prometheus.yml"
    [job] = yaml.safe_load(path.read_text())["scrape_configs"]
    keep, name, _ = job["relabel_configs"]
    assert keep["regex"] == "sluice;metrics"
    assert name == {"source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"], "target_label": "job"}
    rules = (ROOT / "monitoring" / "rules" / "alerts.yml").read_text()
    named = {word for found in re.findall(r'job=~?"([a-z|]+)"', rules) for word in found.split("|")}
    assert named == set(MEASURED)
    assert {one for one in COMPONENTS if "ports" in container(one)} == set(MEASURED)
    tool = shutil.which("promtool")
    if tool is None:
        missing("there is no promtool (Debian: prometheus)")
    # Debian's promtool does not know Kubernetes: without that part
    copy = tmp_path / "prometheus.yml"
    document = yaml.safe_load(path.read_text())
    [discovery] = document["scrape_configs"][0].pop("kubernetes_sd_configs")
    assert discovery == {"role": "pod", "namespaces": {"names": ["sluice"]}}
    copy.write_text(yaml.safe_dump(document))
    said = subprocess.run(
        [str(tool), "check", "config", "--syntax-only", str(copy)], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_example_renders_with_every_name_that_is_used(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl (1.21 or later), which renders the example; the files are checked without it")
    # Given the example with its secrets filled in
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    example = tmp_path / "kubernetes" / "example"
    kustomization = yaml.safe_load((example / "kustomization.yaml").read_text())
    for generator in kustomization["secretGenerator"]:
        for file in generator["files"]:
            secret = example / file.partition("=")[2]
            secret.parent.mkdir(exist_ok=True)
            secret.write_text("secret\n")
    # When kubectl renders it
    said = subprocess.run(
        [kubectl, "kustomize", str(example)], capture_output=True, text=True, check=False, env={"HOME": str(tmp_path)}
    )
    assert said.returncode == 0, said.stderr
    rendered = [one for one in yaml.safe_load_all(said.stdout) if one]
    # Then every object is valid, in one namespace, and what pods name is there
    names = {(one["kind"], one["metadata"]["name"]) for one in rendered}
    for one in rendered:
        assert one["metadata"]["namespace"] == "sluice"
        if one["kind"] == "ScaledObject":
            jsonschema.validate(one, SCALED_OBJECT)
        elif one["kind"] in ("ConfigMap", "Secret") or one["metadata"]["name"] == "sluice-worker":
            # The others are as the base has them
            kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    workloads = [one for one in rendered if one["kind"] in ("Deployment", "Job")]
    assert len(workloads) == len(COMPONENTS)
    for one in workloads:
        spec = one["spec"]["template"]["spec"]
        [found] = spec["containers"]
        assert found["image"] == "registry.example.com/sluice:fill-in"
        used = [("ConfigMap", source["configMapRef"]["name"]) for source in found["envFrom"]]
        for volume in spec["volumes"]:
            if "secret" in volume:
                used.append(("Secret", volume["secret"]["secretName"]))
            for source in volume.get("projected", {}).get("sources", []):
                used.append(("Secret", source["secret"]["name"]))
        assert set(used) <= names, one["metadata"]["name"]
    # And KEDA alone decides on the number of workers
    [worker] = [one for one in workloads if one["metadata"]["name"] == "sluice-worker"]
    assert "replicas" not in worker["spec"]
    [settings] = [one for one in rendered if one["kind"] == "ConfigMap"]
    assert settings["data"] == shared_settings() | {"RETENTION_DAYS": "0"}
