"""Requests generated from the API's own schema."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
REFUSED = {"checks": {"negative_data_rejection": {"expected-statuses": [400, 404, 405, 413, 415, 422]}}}
"""How the server may refuse what breaks the schema. 413: too many messages may also be too many bytes."""


@pytest.mark.parametrize("examples", [8, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", [POSITIVE, NEGATIVE])
def test_requests_made_from_the_document_get_what_it_promises(address, mode, examples):
    """Budgets, lengths and token ids depend on one another and on the model, so well-formed requests may be refused."""
    config = schemathesis.Config.from_dict(REFUSED)
    schema, seen = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config), set()
    for operation in (found.ok() for found in schema.get_all_operations()):
        if mode is NEGATIVE and not operation.body:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(case):
            if mode is POSITIVE and isinstance(case.body, dict) and "model" in case.body:
                case.body["model"] = "tiny"
            answer = case.call_and_validate(excluded_checks=[positive_data_acceptance])
            assert answer.status_code < 500, answer.text
            seen.add(case.operation.path)

        check()
    assert seen == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
        "/infill",
    } | (
        {"/v1/models", "/v1/models/{name}", "/health", "/health/live", "/health/ready", "/metrics"}
        if mode is POSITIVE
        else set()
    )
