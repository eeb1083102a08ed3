"""Answers to generated requests: as the OpenAPI document says, and never an internal error."""

import contextlib
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .running import Running

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

PYDANTIC = ("Input should", "constrained", "Value error", "valid string", "pattern '", "JSON decode error")
"""Words of pydantic's messages, which the service replaces by its own."""


@pytest.mark.parametrize(("mode", "fewest"), [(GenerationMode.POSITIVE, 14), (GenerationMode.NEGATIVE, 7)])
def test_answers_are_as_documented(service: Running, mode: GenerationMode, fewest: int) -> None:
    """Sends valid and invalid requests to at least `fewest` operations."""
    document = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    called: dict[str, set[int]] = {}
    for found in document.get_all_operations():
        operation = found.ok()
        _call(operation, mode, service, called.setdefault(operation.label, set()))
        _delete_jobs(service)
    assert len([statuses for statuses in called.values() if statuses]) >= fewest, called
    wanted = 200 if mode is GenerationMode.POSITIVE else 400
    assert any(wanted in statuses for statuses in called.values()), called


def _call(operation: Any, mode: GenerationMode, service: Running, statuses: set[int]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def run(case: Any) -> None:
        headers = service.headers("dave") | {"X-Deadline-Seconds": "3"}
        answer = case.call_and_validate(headers=headers, checks=CHECKS)
        statuses.add(answer.status_code)
        if answer.status_code == 400:
            message = answer.json()["error"]["message"]
            assert not any(words in message for words in PYDANTIC), message

    with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no invalid request
        run()


def _delete_jobs(service: Running) -> None:
    """Deletes the video jobs of the calls, which would take minutes."""
    jobs = requests.get(f"{service.url}/v1/videos?limit=100", headers=service.headers("dave"), timeout=30).json()
    for job in jobs["data"]:
        requests.delete(f"{service.url}/v1/videos/{job['id']}", headers=service.headers("dave"), timeout=30)
