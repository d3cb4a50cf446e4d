"""GET /metrics, the dashboard and the alerts that read it, and the document that explains it."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from mlx_router.domain import ModelState, Pressure
from mlx_router.telemetry.activity import Phase
from tests.api_support import MODEL, FakeManager, client_for, info, settings
from tests.server import ServerProcess

DOCS = Path(__file__).parent.parent / "docs"
DOCUMENT = (DOCS / "metrics.md").read_text()
BEGIN = "<!-- metrics: a test compares this table with the server's answer -->\n\n"
END = "\n\n<!-- end of metrics -->"
OPEN = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
Families = dict[str, Metric]


def families(text: str) -> Families:
    found = {family.name: family for family in parse_text(text)}
    assert found
    return found


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """Each sample's value by its name, less the family's, and the values of its labels."""
    return {(s.name.removeprefix(family.name), *s.labels.values()): s.value for s in family.samples}


async def scrape(manager: FakeManager, **headers: str) -> httpx.Response:
    async with client_for(manager) as client:
        response = await client.get("/metrics", headers=headers)
    assert response.status_code == 200
    return response


def busy() -> FakeManager:
    """A manager with something to tell of everything."""
    manager = FakeManager()
    tally = manager.activity.tally(MODEL)
    tally.requests.update(["completed"] * 3 + ["cancelled"])
    tally.prompt_tokens, tally.cached_tokens, tally.completion_tokens = 100, 60, 40
    tally.first_token.observe(0.2)
    tally.between_tokens.observe(0.01, 39)
    tally.waiting.observe(3.0)
    tally.loading.observe(2.5)
    tally.load_failures, tally.deaths = 2, 1
    tally.unloads.update(["swap", "swap", "idle"])
    return manager


@pytest.fixture(scope="module")
def served(scripted_server: ServerProcess) -> Families:
    """What a real server tells after some traffic."""
    with httpx.Client(base_url=scripted_server.base, timeout=30) as client:

        def post(path: str, **body: Any) -> int:
            return client.post(path, json=body).status_code

        chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
        assert post("/v1/chat/completions", model="scripted", **chat) == 200
        assert post("/v1/chat/completions", model="scripted", stream=True, **chat) == 200
        assert post("/v1/chat/completions", model="no-such", **chat) == 404
        assert post("/admin/models/unload", model="scripted") == 200
        assert post("/admin/models/load", model="scripted-2") == 200
        return families(client.get("/metrics").text)


# --- what is told ---------------------------------------------------------------------------


async def test_metrics_tell_what_was_counted() -> None:
    found = families((await scrape(busy())).text)
    assert values(found["mlx_router_requests"]) == {
        ("_total", MODEL, "completed"): 3,
        ("_total", MODEL, "cancelled"): 1,
    }
    for name, value in (
        ("prompt_tokens", 100),
        ("prompt_tokens_cached", 60),
        ("completion_tokens", 40),
        ("model_load_failures", 2),
        ("engine_deaths", 1),
    ):
        assert values(found[f"mlx_router_{name}"]) == {("_total", MODEL): value}
    assert values(found["mlx_router_model_unloads"]) == {
        ("_total", MODEL, "swap"): 2,
        ("_total", MODEL, "idle"): 1,
    }
    between = values(found["mlx_router_inter_token_seconds"])
    assert between["_bucket", "0.005", MODEL] == 0
    assert between["_bucket", "0.01", MODEL] == between["_bucket", "+Inf", MODEL] == 39
    assert between["_count", MODEL] == 39
    assert between["_sum", MODEL] == pytest.approx(0.39)
    for name, seconds in (
        ("queue_wait", 3.0),
        ("time_to_first_token", 0.2),
        ("model_load", 2.5),
    ):
        histogram = values(found[f"mlx_router_{name}_seconds"])
        assert histogram["_sum", MODEL] == seconds
        assert histogram["_count", MODEL] == 1


async def test_metrics_tell_the_models_the_memory_and_the_limits() -> None:
    manager = FakeManager(settings=settings(max_queue=7))
    manager.infos.append(info("org/broken", state=ModelState.UNUSABLE))
    manager.pressure = Pressure.HIGH
    found = families((await scrape(manager)).text)
    loaded = values(found["mlx_router_model_loaded"])
    assert loaded == {("", MODEL): 0, ("", "org/other"): 1, ("", "org/broken"): 0}
    assert values(found["mlx_router_model_memory_bytes"]) == {("", "org/other"): 2 * 2**30}
    states = values(found["mlx_router_models"])
    assert {state for _, state in states} == set(ModelState)
    assert (states["", "ready"], states["", "unloaded"], states["", "unusable"]) == (1, 1, 1)
    assert values(found["mlx_router_memory_pressure"]) == {("",): 2}
    assert values(found["mlx_router_memory_available_bytes"]) == {("",): 8 * 2**30}
    assert values(found["mlx_router_memory_limit_bytes"])["", "moderate"] == 8 * 2**30
    assert values(found["mlx_router_swap_limit_ratio"])["", "critical"] == 0.9
    assert values(found["mlx_router_waiting_requests_limit"]) == {("",): 7}
    assert values(found["mlx_router_uptime_seconds"]) == {("",): 12.5}
    (build,) = found["mlx_router_build_info"].samples
    assert build.labels["version"] == "1.2.3"


async def test_requests_under_way_are_told_by_model_and_phase() -> None:
    manager = FakeManager()
    activity = manager.activity
    with activity.request("chat", "tiny", "a") as one, activity.request("chat", "'\n\"", "b"):
        activity.meets(one, MODEL)
        activity.granted(one)
        found = values(families((await scrape(manager)).text)["mlx_router_requests_in_progress"])
    counted = {(*labels, value) for labels, value in found.items() if value}
    assert counted == {("", MODEL, "prefill", 1), ("", "", "waiting", 1)}  # no name that is made up
    assert found.keys() == {("", model, phase) for model in (MODEL, "") for phase in Phase}
    found = values(families((await scrape(manager)).text)["mlx_router_requests_in_progress"])
    assert set(found.values()) == {0}


@pytest.mark.parametrize("model", ['a"b', "a\\b", "a\nb", "modèle/é", "a{b}=,", " "])
async def test_any_model_name_can_be_told(model: str) -> None:
    manager = FakeManager()
    manager.activity.tally(model).requests["completed"] += 1
    for accept, parse in (("", parse_text), (OPEN, parse_open)):
        text = (await scrape(manager, accept=accept)).text
        (requests,) = (f for f in parse(text) if f.name == "mlx_router_requests")
        assert [sample.labels["model"] for sample in requests.samples] == [model]


# --- how it is told -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=x", "text/plain; version=0.0.4; charset=utf-8"),
        (OPEN, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=x;escaping=",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
async def test_the_format_is_the_one_asked_for_and_valid(accept: str, media_type: str) -> None:
    response = await scrape(busy(), accept=accept)
    assert response.headers["content-type"] == media_type
    is_open = "openmetrics" in media_type
    found = list((parse_open if is_open else parse_text)(response.text))
    names = [family.name for family in found]
    assert len(names) == len(set(names)) > 25
    assert all(family.documentation.endswith(".") for family in found)
    assert response.text.endswith("# EOF\n") == is_open


async def test_names_follow_prometheus_conventions() -> None:
    for family in families((await scrape(busy())).text).values():
        assert re.fullmatch(r"mlx_router(_[a-z]+)+", family.name)
        assert (family.type == "histogram") <= family.name.endswith("_seconds")
        for sample in family.samples:
            assert (family.type == "counter") == sample.name.endswith("_total")


async def test_metrics_may_be_asked_for_with_head() -> None:
    async with client_for(FakeManager()) as client:
        response = await client.head("/metrics")
    assert (response.status_code, response.content) == (200, b"")


async def test_metrics_are_for_those_who_may_use_the_server() -> None:
    async with client_for(FakeManager(), address="192.168.0.7") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/metrics", headers={"host": "evil.com"})).status_code == 403
        assert (await client.post("/metrics")).status_code == 405
    async with client_for(FakeManager(), address="8.8.8.8") as client:
        assert (await client.get("/metrics")).status_code == 403
    keys = FakeManager(settings=settings(api_keys={"prometheus": "sk-scrape"}))
    async with client_for(keys, address="8.8.8.8") as client:
        assert (await client.get("/metrics")).status_code == 401
        headers = {"authorization": "Bearer sk-scrape"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200


def test_metrics_of_a_real_server_add_up(served: Families) -> None:
    requests = values(served["mlx_router_requests"])
    assert requests["_total", "scripted", "completed"] >= 2
    assert requests["_total", "", "model_not_found"] >= 1
    tokens = values(served["mlx_router_completion_tokens"])["_total", "scripted"]
    between = values(served["mlx_router_inter_token_seconds"])["_count", "scripted"]
    assert tokens >= 40
    assert 0 < between < tokens
    assert values(served["mlx_router_model_unloads"])["_total", "scripted", "asked"] >= 1
    assert values(served["mlx_router_model_loaded"])["", "scripted-2"] == 1
    assert values(served["mlx_router_model_load_seconds"])["_count", "scripted"] >= 1
    assert values(served["mlx_router_process_memory_bytes"])[("",)] > 10**7


# --- who reads it ---------------------------------------------------------------------------


def test_the_document_lists_every_metric(served: Families) -> None:
    rows = [
        f"| `{family.samples[0].name if family.type == 'counter' else family.name}` "
        f"| {family.type} | {labels(family)} | {family.documentation} |"
        for family in served.values()
    ]
    table = "\n".join(["| name | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])
    shown = DOCUMENT.partition(BEGIN)[2].partition(END)[0]
    assert shown == table, f"put this table into docs/metrics.md:\n{table}"


def labels(family: Metric) -> str:
    names = dict.fromkeys(name for s in family.samples for name in s.labels if name != "le")
    assert family.samples
    return ", ".join(f"`{name}`" for name in names)


DASHBOARD = json.loads((DOCS / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = DASHBOARD["templating"]["list"]
YAML = import_module("yaml")
BLOCKS = [YAML.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)]
RULES = [rule for block in BLOCKS for group in block.get("groups", []) for rule in group["rules"]]
# What Prometheus itself adds, and a metric of its own.
TARGET = {"instance", "job"}
UP = {"up": TARGET}


def check(expression: str, served: Families) -> set[str]:
    """That a PromQL expression uses only metrics and labels that there are; those labels."""
    known: dict[str, set[str]] = dict(UP)
    for family in served.values():
        for sample in family.samples:
            known.setdefault(sample.name, set(TARGET)).update(sample.labels)
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:mlx_router_\w+|up\b)", bare))
    assert names, expression
    assert names <= known.keys(), expression
    for name, selector in re.findall(r"\b(mlx_router_\w+|up)\{([^}]*)\}", bare):
        assert set(re.findall(r"(\w+)\s*[=!]", selector)) <= known[name], expression
    shared = set.intersection(*(known[name] for name in names))
    for grouping in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare):
        assert set(re.findall(r"\w+", grouping)) <= shared, expression
    for open_, close in ("()", "{}", "[]"):
        assert bare.count(open_) == bare.count(close), expression
    return shared


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_the_dashboard_asks_for_what_there_is(panel: dict[str, Any], served: Families) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        shared = check(target["expr"], served)
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= shared
        assert target["datasource"]["uid"] == "${datasource}"
        variables = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
        assert variables <= {variable["name"] for variable in VARIABLES}
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]


def test_the_dashboard_shows_every_metric(served: Families) -> None:
    asked = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    for name, family in served.items():
        assert re.search(rf"\b{name}(?:_total|_bucket|_count|_sum)?\b", asked), family.name


def test_the_dashboard_can_be_imported_anywhere(served: Families) -> None:
    assert DASHBOARD["schemaVersion"] >= 38  # Grafana 10
    assert DASHBOARD["id"] is None
    assert VARIABLES[0]["type"] == "datasource"
    for variable in VARIABLES[1:]:
        check(variable["definition"].partition("(")[2].rpartition(",")[0], served)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_alerts_ask_for_what_there_is(rule: dict[str, Any], served: Families) -> None:
    shared = check(rule["expr"], served)
    summary = rule["annotations"]["summary"]
    assert set(re.findall(r"\$labels\.(\w+)", summary)) <= shared
    assert rule["labels"]["severity"] in ("warning", "critical")


def test_the_outcomes_that_alerts_ask_for_are_codes_of_errors() -> None:
    codes = (DOCS / "api.md").read_text()
    asked = re.findall(r'outcome=~"([^"]+)"', " ".join(rule["expr"] for rule in RULES))
    assert len(RULES) >= 6
    assert all(f"`{code}`" in codes for group in asked for code in group.split("|"))


def test_the_scrape_config_says_where_the_key_goes() -> None:
    (job,) = (job for block in BLOCKS for job in block.get("scrape_configs", []))
    assert job["authorization"]["credentials_file"]  # Bearer is Prometheus's default
    assert job["static_configs"][0]["targets"]
