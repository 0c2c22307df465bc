"""What deploy/ holds: files that parse, metrics that exist, and settings that fit the server's."""

import configparser
import ipaddress
import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from helpers.serving import running, tiny_service
from solm.serving.metrics import Metrics
from solm.serving.settings import MAX_BODY, ServeSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/solm.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = [rule["expr"] for rule in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]]


def text(name):
    return (DEPLOY / name).read_text()


def known_names():
    """The names of all samples of a fresh server; counters and histograms with labels have none before their first."""
    metrics = Metrics()
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    for family in metrics.registry.collect():
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "summary": ["_sum", "_count"]}
        names |= {family.name + end for end in ends.get(family.type, [""])}
    return names


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *ALERTS])
def test_every_metric_of_dashboard_and_alerts_exists(expression):
    names = set(re.findall(r"\bsolm_\w+", expression))
    assert names <= known_names()
    assert names or expression.startswith("up{")


def test_labels_and_values_in_expressions_exist(byte_tokenizer):
    metrics = tiny_service(byte_tokenizer).metrics
    metrics.requests.labels("/v1/models", "200")
    metrics.tokens.labels("completion")
    values = {pair for family in metrics.registry.collect() for one in family.samples for pair in one.labels.items()}
    labels = {name for name, _ in values}
    for expression in [*EXPRESSIONS, *ALERTS]:
        used = re.findall(r"(\w+)=~?\"", expression) + re.findall(r"by \((.*?)\)", expression)
        assert {name.strip() for part in used for name in part.split(",")} <= labels | {"instance", "job"}
        exact = set(re.findall(r'(\w+)="([^"$]*)"', expression))
        assert {pair for pair in exact if pair[0] != "job"} <= values


def test_compose_mounts_files_that_exist_and_writes_only_where_it_says():
    compose = yaml.safe_load(text("compose.yml"))
    for name, service in compose["services"].items():
        for mount in service["volumes"]:
            where = mount.split(":")[0]
            assert (DEPLOY / where).is_file() if where.startswith("./") else where in compose["volumes"], (name, mount)
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    solm = compose["services"]["solm"]
    assert solm["read_only"]
    assert solm["tmpfs"] == ["/tmp"]
    assert int(solm["stop_grace_period"].rstrip("s")) > ServeSettings().drain_seconds
    scraped = yaml.safe_load(text("prometheus.yml"))["scrape_configs"][0]
    assert scraped["authorization"]["credentials_file"] == "/run/secrets/metrics_key"


def test_the_unit_and_nginx_fit_the_servers_limits():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "solm.service")
    assert int(unit["Service"]["TimeoutStopSec"]) > ServeSettings().drain_seconds
    nginx = text("nginx.conf")
    assert nginx.count("{") == nginx.count("}")
    assert "proxy_buffering off;" in nginx
    assert int(re.search(r"client_max_body_size (\d+)m;", nginx)[1]) << 20 == MAX_BODY
    assert int(re.search(r"proxy_read_timeout (\d+)s;", nginx)[1]) > ServeSettings().max_seconds


@pytest.fixture(scope="module")
def scraped(byte_tokenizer):
    """What a server with keys, that was just started, says to one without: statuses by path, and its metrics."""
    with running(tiny_service(byte_tokenizer, open_metrics=True), keys=["secret"], hosts=None) as address:
        text = httpx.get(f"{address}/metrics").text
        paths = ("/health/ready", "/health/live", "/v1/models")
        statuses = {path: httpx.get(f"{address}{path}", headers={"Host": "10.0.0.7:8000"}) for path in paths}
    return {path: answer.status_code for path, answer in statuses.items()}, text


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("num_requests_waiting", ()),
        ("num_requests_running", ()),
        ("kv_cache_usage_perc", ()),
        ("cache_config_info", ("block_size", "num_gpu_blocks")),
    ],
)
def test_every_metric_of_llm_ds_model_server_protocol_is_there(name, labels, scraped):
    families = {family.name: family for family in text_string_to_metric_families(scraped[1])}
    family = families[f"vllm:{name}"]
    assert family.type == "gauge"
    (sample,) = family.samples
    assert sample.value == (1 if labels else 0)
    assert all(int(sample.labels[label]) > 0 for label in labels)


def test_llm_ds_servers_answer_its_probes_and_are_what_the_pool_chooses():
    deployment, pool = yaml.safe_load_all(text("llm-d/servers.yaml"))
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pool["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"] == pool["spec"]["selector"]
    assert [port["number"] for port in pool["spec"]["targetPorts"]] == [container["ports"][0]["containerPort"]]
    assert pod["spec"]["terminationGracePeriodSeconds"] > ServeSettings().drain_seconds
    settings = dict(each.split("=") for each in container["args"] if "=" in each)
    assert ServeSettings(**settings).open_metrics
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"/cache", "/tmp"}  # all that the image writes, as deploy/Dockerfile says


def test_llm_ds_probes_need_no_key_and_no_known_host(scraped):
    deployment = next(yaml.safe_load_all(text("llm-d/servers.yaml")))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert scraped[0][container[probe]["httpGet"]["path"]] == 200
    assert scraped[0]["/v1/models"] == 401


def test_llm_ds_picker_finds_its_servers_in_the_file():
    picker, endpoints = (yaml.safe_load(text(f"llm-d/{name}.yaml")) for name in ("picker", "endpoints"))
    plugins = {plugin.get("name", plugin["type"]): plugin for plugin in picker["plugins"]}
    used = [each["pluginRef"] for each in picker["schedulingProfiles"][0]["plugins"]]
    (source,) = picker["dataLayer"]["sources"]
    used += [source["pluginRef"], source["extractors"][0]["pluginRef"]]
    found = picker["dataLayer"]["discovery"]["endpoints"]["pluginRef"]
    assert {*used, found} == plugins.keys()
    assert plugins[found]["parameters"]["path"] == "/etc/epp/endpoints.yaml"
    page = (DEPLOY.parent / "docs/scale.md").read_text()
    for server in endpoints["endpoints"]:  # the picker resolves no names
        assert ipaddress.IPv4Address(server["address"])
        assert isinstance(server["port"], str)
        assert server["port"] in page
