"""The description at /openapi.json is true: requests made from it, good and bad ones, get answers
as it says, and none of them a fault. Always the same requests, so that a failure comes again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckContext
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api_support import FakeManager, app_for
from tests.conformance import check_error
from tests.server import ServerProcess

Case = schemathesis.Case[Any]
pytestmark = pytest.mark.slow

SCHEMA = schemathesis.openapi.from_dict(app_for(FakeManager()).openapi()).exclude(
    path=["/hub/events", "/admin/shutdown"]  # one never ends, the other ends the server
)


@SCHEMA.hook
def map_path_parameters(context: schemathesis.HookContext, parameters: Any) -> Any:
    if parameters and len(parameters.get("model", "")) % 2:
        parameters["model"] = "scripted"
    return parameters


@SCHEMA.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Most names that are made up are of no model, and a 404 shows little."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) > 1:
        body["model"] = "scripted"
    return body


def no_fault(context: CheckContext, response: Response, case: Case) -> None:
    """No 5xx, except that nothing was in time where next to no time was given."""
    hasty = isinstance(case.body, dict) and case.body.get("timeout") is not None
    assert response.status_code < 500 or (response.status_code == 504 and hasty), response.text


def openais_error(context: CheckContext, response: Response, case: Case) -> None:
    if response.status_code >= 400:
        check_error(response.json())


CHECKS: list[Any] = [
    no_fault,
    openais_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that knows what model is meant where none is named."""
    folder = tmp_path_factory.mktemp("described")
    config = {"defaults": {"model": "scripted", "max_tokens": 32}}
    flags = ("--engine", "scripted")
    with ServerProcess(folder, *flags, config=config, models=folder) as server:
        yield server.base
        assert "Traceback" not in server.output()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@SCHEMA.parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_what_the_description_says_is_so(case: Case, session: requests.Session, base: str) -> None:
    case.call_and_validate(base_url=base, session=session, checks=CHECKS)


def test_every_route_is_described_and_tried() -> None:
    described = {(path, method) for path in SCHEMA for method in SCHEMA[path]}
    assert ("/v1/chat/completions", "post") in {(p, m.lower()) for p, m in described}
    assert len(described) >= 9
