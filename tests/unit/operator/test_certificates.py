"""What the certificates' chore plans, by what there is and what time it is."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from services.common.authority import Authority, Pair, new_key
from services.operator.certificates import NODE_NAME, SIGNER, Options, answer, plan

OPTIONS = Options("kube-system", {"relay": ["relay.example"]}, validity=timedelta(days=90))
NOW = datetime.now(UTC)
AUTHORITY, KEPT = Authority.new()


def document(name: str, pair: Pair) -> dict[str, Any]:
    encoded = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": KEPT.certificate}
    data = {key: base64.b64encode(value).decode() for key, value in encoded.items()}
    return {"metadata": {"name": name, "resourceVersion": "7"}, "data": data}


def issued(**how: Any) -> dict[str, Any]:
    return document("ciliate-relay-tls", AUTHORITY.issue(**({"role": "relay", "hosts": ["relay.example"]} | how)))


def test_the_authority_comes_first_and_alone() -> None:
    writes, problems = plan(OPTIONS, {}, [], NOW)
    assert [str(write) for write in writes] == ["create Secret ciliate-ca"]
    assert not problems


def test_an_authority_of_somebody_else_is_waited_for() -> None:
    writes, problems = plan(Options("ns", {"relay": []}, make_authority=False), {}, [request()], NOW)
    assert not writes
    assert "ns/ciliate-ca" in problems["ciliate-ca"]


@pytest.mark.parametrize(
    ("present", "later", "writes"),
    [
        (None, 0, ["create Secret ciliate-relay-tls"]),
        (issued(validity=timedelta(days=90)), 0, []),
        (issued(validity=timedelta(days=90)), 59, []),
        (issued(validity=timedelta(days=90)), 61, ["replace Secret ciliate-relay-tls"]),
        (issued(hosts=[]), 0, ["replace Secret ciliate-relay-tls"]),
        (issued(role="identity"), 0, ["replace Secret ciliate-relay-tls"]),
        (
            document("x", Authority.new()[0].issue("relay", "", ["relay.example"])),
            0,
            ["replace Secret ciliate-relay-tls"],
        ),
        ({"metadata": {"name": "x"}, "data": {"tls.crt": "?"}}, 0, ["replace Secret ciliate-relay-tls"]),
        ({"metadata": {"name": "x"}}, 0, ["replace Secret ciliate-relay-tls"]),
    ],
)
def test_certificates_of_roles(present: Any, later: int, writes: list[str]) -> None:
    secrets = {"ciliate-ca": document("ciliate-ca", KEPT)} | ({"ciliate-relay-tls": present} if present else {})
    found, _ = plan(OPTIONS, secrets, [], NOW + timedelta(days=later))
    assert [str(write) for write in found] == writes


def request(**spec: Any) -> dict[str, Any]:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent/forged")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(new_key(), hashes.SHA256())
    default = {
        "signerName": SIGNER,
        "username": "system:serviceaccount:kube-system:ciliate-agent",
        "extra": {NODE_NAME: ["node1"]},
        "request": base64.b64encode(made.public_bytes(serialization.Encoding.PEM)).decode(),
    }
    return {"metadata": {"name": "r", "resourceVersion": "3"}, "spec": default | spec}


def rsa_request() -> str:
    key = rsa.generate_private_key(65537, 2048)
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(serialization.Encoding.PEM)).decode()


def judged(document: dict[str, Any]) -> list[tuple[str, str]]:
    found = answer(document, AUTHORITY, OPTIONS)
    return [
        (each.subresource, (each.document or {})["status"].get("conditions", [{"type": "signed"}])[0]["type"])
        for each in found
    ]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (request(), [("approval", "Approved")]),
        (request() | {"status": {"conditions": [{"type": "Approved"}]}}, [("status", "signed")]),
        (request() | {"status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}, []),
        (request() | {"status": {"conditions": [{"type": "Denied"}]}}, []),
        (request(signerName="kubernetes.io/kubelet-serving"), []),
        (request(username="system:serviceaccount:other:ciliate-agent"), [("approval", "Denied")]),
        (request(extra={}), [("approval", "Denied")]),
        (request(extra={NODE_NAME: ["node1", "node2"]}), [("approval", "Denied")]),
        (request(extra=None), [("approval", "Denied")]),
        (request(request="no base64!"), [("approval", "Denied")]),
        (request(request=base64.b64encode(b"no request").decode()), [("approval", "Denied")]),
        (request(request=None), [("approval", "Denied")]),
        (request(request=rsa_request()), [("approval", "Denied")]),
        # Somebody who may approve did so for somebody who is no agent: still not signed.
        (request(username="eve") | {"status": {"conditions": [{"type": "Approved"}]}}, [("approval", "Denied")]),
    ],
)
def test_requests(asked: dict[str, Any], what: list[tuple[str, str]]) -> None:
    assert judged(asked) == what


def test_the_name_in_the_certificate_is_not_the_requests() -> None:
    approved = request() | {"status": {"conditions": [{"type": "Approved"}]}}
    (write,) = answer(approved, AUTHORITY, OPTIONS)
    chain = base64.b64decode((write.document or {})["status"]["certificate"])
    leaf = x509.load_pem_x509_certificate(chain)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "ciliate://agent/node1" in names.get_values_for_type(x509.UniformResourceIdentifier)
    assert "forged" not in leaf.subject.rfc4514_string()
    assert chain.endswith(KEPT.certificate)
