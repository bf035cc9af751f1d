"""Nothing that opens a door leaves a cluster, and what explains a fault stays readable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.sysdump import redact

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\nabc==\n-----END EC PRIVATE KEY-----"
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJpc3MiOiJrdWJlcm5ldGVzL3Nl.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"before {KEY} after", "MHcCAQEEIB"),
        ("cut: -----BEGIN PRIVATE KEY-----\nMIIEvQIBADANB", "MIIEvQIBADANB"),
        (f"x {JWT} y", "c2lnbmF0dXJl"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("authorization: Basic dXNlcjpodW50ZXIy", "dXNlcjpodW50ZXIy"),
        ("https://user:hunter2@etcd:2379/", "hunter2"),
        ("postgres://app:hunter2@db/x", "hunter2"),
        ("password=hunter2", "hunter2"),
        ("DB_PASSWORD: hunter2", "hunter2"),
        ('{"token": "hunter2"}', "hunter2"),
        ("GET /login?access_token=hunter2&x=1", "hunter2"),
        ("client-key-data: aHVudGVyMg", "aHVudGVyMg"),
        ("--api-key 'hunter2' --api_key='hunter2'", "api_key='hunter2'"),
        ("Set-Cookie: session=hunter2", "session=hunter2"),
    ],
)
def test_text(text: str, secret: str) -> None:
    found = redact.text(text)
    assert secret not in found
    assert redact.HIDDEN in found
    assert redact.text(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "tls_key: /run/ciliate/pki/agent.key",
        "bearer_token_file: /var/run/token",
        "policy_max: 262144",
        "tokens: 17",
        "password: null",
        "10.0.0.1:80 -> 10.0.0.2:53 FORWARDED",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert redact.text(text) == text


def test_documents() -> None:
    found = redact.document(
        {
            "kind": "Pod",
            "metadata": {"name": "web", "annotations": {"example.com/api-token": "hunter2", "note": "stays"}},
            "spec": {"containers": [{"env": [{"name": "MODE", "value": "hunter2"}, {"name": "X", "valueFrom": {}}]}]},
            "headers": [{"key": "Cookie", "value": "hunter2"}, {"key": "Accept", "value": "text/plain"}],
            "tls_key": "/pki/agent.key",
            "socket_cookie": "4711",
            "clientPassword": "hunter2",
            "log": "token=hunter2",
        }
    )
    text = json.dumps(found)
    assert "hunter2" not in text
    assert found["metadata"]["annotations"]["note"] == "stays"
    assert (found["tls_key"], found["socket_cookie"]) == ("/pki/agent.key", "4711")
    assert found["headers"][1]["value"] == "text/plain"
    assert found["spec"]["containers"][0]["env"][0] == {"name": "MODE", "value": redact.HIDDEN}


def test_secrets_lose_all_their_data() -> None:
    found = redact.document(
        {"kind": "Secret", "data": {"a": "aHVudGVyMg=="}, "stringData": {"b": "hunter2"}, "type": "T"}
    )
    assert (found["data"], found["stringData"], found["type"]) == (redact.HIDDEN, redact.HIDDEN, "T")


@given(
    st.from_regex(r"[A-Za-z0-9]{12,40}[a-z]", fullmatch=True),
    st.sampled_from(["password", "API_TOKEN", "secret", "x-api-key"]),
)
def test_whatever_the_secret_is(secret: str, name: str) -> None:
    assert secret not in redact.text(f"{name}={secret}\n")
    assert secret not in json.dumps(redact.document({name: secret, "list": [{"name": name, "value": secret}]}))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ["x", "a.", "token", "eyJ.", "-----BEGIN ", "a://b:", "secret= ", "'\"", "--token"])
def test_it_takes_megabytes_of_anything(piece: str) -> None:
    redact.text(piece * (1_000_000 // len(piece)))


@given(st.text(max_size=300))
def test_it_takes_any_text(text: str) -> None:
    redact.text(text)
