"""The contract refuses what KFP would refuse, and both of its sources say the same."""

from __future__ import annotations

from typing import Any

import kfp
import kfp_server_api
import pytest
from contract import USED, Contract, generated
from fake_kfp import FakeKfp


@pytest.fixture(params=["official", "generated"])
def either(request: pytest.FixtureRequest) -> Contract:
    return request.getfixturevalue("official_contract") if request.param == "official" else generated()


def problems(contract: Contract, method: str, path: str, body: Any = None, **query: str) -> list[str]:
    found = contract.find(method, f"/apis/v2beta1/{path}")
    assert found is not None
    return contract.request_problems(found[0], {k: [v] for k, v in query.items()}, "application/json", body)


def test_what_fits_passes(either: Contract) -> None:
    body = {
        "display_name": "x",
        "pipeline_spec": {"any": {"thing": 1}},
        "runtime_config": {"parameters": {"a": {"b": 1}}},
    }
    assert problems(either, "POST", "runs", body) == []
    assert problems(either, "GET", "runs", page_size="10", filter="{}") == []


@pytest.mark.parametrize(
    ("method", "path", "body", "query", "word"),
    [
        ("POST", "runs", {"displayName": "x"}, {}, "displayName"),
        ("POST", "runs", {"display_name": 3}, {}, "3 is not of type 'string'"),
        ("POST", "runs", {"runtime_config": {"parameter": {}}}, {}, "parameter"),
        ("POST", "recurringruns", {"mode": "ON"}, {}, "'ON' is not one of"),
        ("POST", "recurringruns", {"trigger": {"periodic_schedule": {"interval_second": "6h", "x": 1}}}, {}, "x"),
        ("POST", "recurringruns", {"trigger": {"cron_schedule": {"start_time": "tomorrow"}}}, {}, "tomorrow"),
        ("GET", "runs", None, {"pageSize": "3"}, "pageSize"),
        ("GET", "runs", None, {"page_size": "ten"}, "page_size"),
        ("GET", "healthz", {"x": 1}, {}, "not wanted"),
    ],
)
def test_what_does_not_fit_is_refused(
    either: Contract, method: str, path: str, body: Any, query: dict[str, str], word: str
) -> None:
    found = problems(either, method, path, body, **query)
    assert found and word in " ".join(found)


def test_only_the_api_sets_its_own_fields(official_contract: Contract) -> None:
    assert problems(official_contract, "POST", "runs", {"run_id": "mine"})
    assert problems(official_contract, "POST", "recurringruns", {"namespace": "mine"})


def test_int64_is_taken_as_text_and_as_a_number(official_contract: Contract) -> None:
    for value in ("3600", 3600):
        body = {"trigger": {"periodic_schedule": {"interval_second": value}}}
        assert problems(official_contract, "POST", "recurringruns", body) == []
    assert problems(official_contract, "POST", "recurringruns", {"max_concurrency": "three"})


def test_the_generated_client_says_the_same_as_the_official_file(official_contract: Contract) -> None:
    official = {(operation.method, operation.path): operation for operation in official_contract.operations}
    for used in USED:
        one = official[used.method, used.path]
        assert dict(one.query) == dict(used.query), used
        assert one.multipart == used.multipart
        for ours, theirs in ((used.body, one.body), (used.answer, one.answer)):
            assert (ours is None) == (theirs is None), used
            if ours is None:
                continue
            definition = official_contract._definitions["answer"][theirs]
            assert set(definition["properties"]) == set(getattr(kfp_server_api, ours).attribute_map.values()), ours


def test_kfps_client_has_the_private_parts_that_ours_uses(kfp_server: FakeKfp) -> None:
    methods = {"_load_config", "_load_context_setting_or_default"}
    constants = {"_IN_CLUSTER_DNS_NAME", "_LOCAL_KFP_CONTEXT"}
    assert methods | constants <= set(vars(kfp.Client))
    assert {"_existing_config", "_context_setting", "_healthz_api"} <= set(vars(kfp.Client(host=kfp_server.url)))
