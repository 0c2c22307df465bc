"""What deploy/ holds: files that parse, metrics that exist, and settings that fit the server's."""

import configparser
import json
import re
from pathlib import Path

import pytest
import yaml

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
    from helpers.serving import tiny_service

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
