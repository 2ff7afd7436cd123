"""The OpenAPI document says what the service does: asked with whatever it allows, and with what it does not."""

from collections import Counter
from typing import Any

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.security import OPEN_PATHS
from tests.service.running import KEY, Service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_EXAMPLES = 6
"""Of each operation, good and bad ones each."""


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    found: dict[str, Any] = service.client.get("/openapi.json").json()
    return found


def hammer(
    service: Service, document: dict[str, Any], mode: schemathesis.GenerationMode, key: str | None, **fixed: Any
) -> Counter[int]:
    """Requests generated from the document, each answer held against it; returns how often each status came.

    Args:
        fixed: parts of the requests that are not generated.
    """
    schema = schemathesis.openapi.from_dict(document)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            if mode.is_negative and not (list(operation.body) or list(operation.headers)):
                continue  # there is nothing to do wrong

            @settings(
                max_examples=_EXAMPLES,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode, **fixed))
            def ask(case: schemathesis.Case) -> None:
                response = case.call(base_url=service.url, session=session, headers=headers)
                statuses[response.status_code] += 1
                case.validate_response(response, checks=CHECKS)
                if key is None and case.path not in OPEN_PATHS:
                    assert response.status_code == 401

            ask()
    return statuses


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_as_documented(
    service: Service, document: dict[str, Any], mode: schemathesis.GenerationMode
) -> None:
    print(hammer(service, document, mode, KEY))


def test_every_answer_of_good_adapters_is_as_documented(service: Service, document: dict[str, Any]) -> None:
    statuses = hammer(
        service, document, schemathesis.GenerationMode.POSITIVE, KEY, headers={"X-Adapter": "movies,tone"}
    )
    print(statuses)
    assert statuses[200] > _EXAMPLES


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_without_a_key_everything_but_the_probes_is_a_401(
    service: Service, document: dict[str, Any], mode: schemathesis.GenerationMode
) -> None:
    assert hammer(service, document, mode, key=None)[401] > 0


def test_every_answer_has_examples_that_fit_it(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                assert answer["description"]
                for media_type, content in answer["content"].items():
                    where = f"{method} {path} {status} {media_type}"
                    assert content["examples"], where
                    schema = content["schema"] | {"components": document["components"]}
                    for name, shown in content["examples"].items():
                        jsonschema_rs.validate(schema, shown["value"])
                        if media_type == "application/problem+json":
                            assert shown["value"]["status"] == int(status), f"{where} {name}"
