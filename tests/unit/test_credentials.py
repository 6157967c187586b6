"""Credentials in addresses: shown nowhere, and ordinary addresses stay as they are."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rest_core.credentials import has_credentials, redact, redacted, with_credentials, without_credentials

# All that can be typed, and some of it that means something in an address; no short one, which the address may contain.
PASSWORD = st.text(string.ascii_letters + string.digits + "/@:%?#&=+.,;'\"<>[]{}()$!*~|\\^`-_ äß→", min_size=6).map(
    lambda text: f"x{text.strip()}y"
)
USER = st.text(string.ascii_letters + string.digits + "._-+%", max_size=12)
IN_USER_INFORMATION = (
    "postgresql://{user}:{password}@db/m",
    "postgresql+psycopg2://{user}:{password}@db.corp.example:5432/mlflow?sslmode=require",
    "https://{user}:{password}@host",
    "http://{user}:{password}@127.0.0.1:5000/pipeline",
    "http://:{password}@[::1]:5000",
    "MLflow at https://{user}:{password}@mlflow.corp.example/x does not answer; start it",
    "openai:org/model@http://{user}:{password}@host:8000/v1",
    '{{"uri": "http://{user}:{password}@host", "rows": 5}}',
)
IN_QUERY = (
    "postgresql://db/m?user=x&password={password}",
    "http://host/x?{name}={password}&rows=5",
    "http://u:p@db:5432/m?passwd={password}#top",
    "see 'https://b.s3.example/x?X-Amz-Signature={password}', which is gone",
    "https://hooks.example/services?access_token={password}",
)


@pytest.mark.parametrize("form", IN_USER_INFORMATION)
@settings(deadline=None)
@given(user=USER, password=PASSWORD)
@example("mlflow", "pa/ss")
@example("u", "p@ss")
@example("u", "5000/abc")
@example("u", "a@b@c")
@example("u", "a://b:c@d/e")
@example("u", "per%2Fcent%")
@example("u", "two words and@more")
@example("", "x0@:: 0y")
@example("", "x|#@:$; #_y")
def test_no_password_in_the_user_information_is_shown(form: str, user: str, password: str) -> None:
    text = form.format(user=user, password=password)
    assert has_credentials(text)
    assert password not in redact(text)
    assert password not in without_credentials(text)
    assert not has_credentials(without_credentials(text))


@pytest.mark.parametrize("form", IN_QUERY)
@settings(deadline=None)
@given(
    name=st.sampled_from(["pwd", "token", "api_key", "secret", "sig", "sslpassword"]),
    password=PASSWORD.map(lambda text: "".join(text.replace("&", "").split())),
)
def test_no_password_in_a_query_is_shown(form: str, name: str, password: str) -> None:
    text = form.format(name=name, password=password)
    assert has_credentials(text)
    assert password not in redact(text)
    assert password not in without_credentials(text)


@settings(deadline=None)
@given(st.text(string.ascii_letters + ":/@?#&= .\n[]", max_size=60))
def test_what_is_redacted_needs_no_second_time(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "address",
    [
        "https://host/a@b",
        "https://huggingface.co/org/model@main/config.json",
        "http://localhost:5000/a@b",
        "http://127.0.0.1:8888/v1/models/org/model@main",
        "https://mlflow.corp.example:8443/#/models/tool-use@champion",
        "http://[::1]:5000/a@b",
        "http://[::1]/a@b",
        "s3://bucket/x@y",
        "s3://bucket/prefix with blanks/x@y",
        "org/model@main",
        "openai:org/model@http://vllm:8000/v1",
        "file:///home/me@corp/x:y@z",
        "sqlite:////home/me@corp/mlflow.db",
        "models:/rest-tool-use@champion",
        "https://host/path?rows=5&author=me@host",
        "write it as http://HOST:PORT or sqlite:////absolute/path/mlflow.db",
        "mail me@host",
    ],
)
def test_an_ordinary_address_stays(address: str) -> None:
    assert redact(address) == address
    assert without_credentials(address) == address
    assert not has_credentials(address)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot open s3://a:b@c/d", "cannot open s3://***@c/d"),
        ("https://b.s3/x?X-Amz-Signature=abc&y=1", "https://b.s3/x?X-Amz-Signature=***&y=1"),
        ("('http://h/x?token=abc'), then", "('http://h/x?token=***'), then"),
        ("git+ssh://git@github.com/x", "git+ssh://***@github.com/x"),
        ("http://u:p@h/x and http://v:q@i/y", "http://***@h/x and http://***@i/y"),
        ("http://u:p@db/m?password=x@y&z=1", "http://***&z=1"),  # whichever way it is read
    ],
)
def test_what_is_left(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("http://me:pw@host:5000", "http://host:5000"),
        ("postgresql://me:pa/ss@db/m?sslmode=require", "postgresql://db/m?sslmode=require"),
        ("postgresql://db/m?user=x&password=hunter2", "postgresql://db/m?user=x"),
        ("postgresql://db/m?password=hunter2&user=x&sslmode=require", "postgresql://db/m?user=x&sslmode=require"),
        ("postgresql://db/m?user=x&password=hunter2&sslmode=require", "postgresql://db/m?user=x&sslmode=require"),
    ],
)
def test_an_address_is_recorded_without_and_used_with_credentials(
    address: str, clean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert without_credentials(address) == clean
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    assert with_credentials(clean) == address
    assert with_credentials("http://other:5000") == "http://other:5000"
    assert with_credentials("http://other:5000", "http://a:b@other:5000") == "http://a:b@other:5000"


def test_values_of_secret_keys_are_hidden_at_any_depth() -> None:
    values = {"a": [{"hf_token": "abc", "max_response_tokens": 7}], "aws_secret_access_key": "x", "url": "http://u:p@h"}
    assert redacted(values) == {
        "a": [{"hf_token": "***", "max_response_tokens": 7}],
        "aws_secret_access_key": "***",
        "url": "http://***@h",
    }


@pytest.mark.parametrize(
    "hostile",
    ["://", "://a:b", "://a.b:1/", "://h:1/?", "a@", "?token=", "?token='", "://u: ", "?aaaa", "://[", "://a:b @\n"],
)
def test_hostile_text_takes_linear_time(hostile: str) -> None:
    started = time.monotonic()
    for text in (hostile * 100_000, f"{hostile * 100_000}@", f"{hostile * 100_000} @"):
        redact(text)
        without_credentials(text)
    assert time.monotonic() - started < 30  # a second or two; with quadratic time hours
