"""Who is who among our processes: our authority, the certificates of roles, and what agents ask for. Pure.

    Secret ciliate-ca ──▶ Secrets ciliate-<role>-tls (mounted by the role's pods; processes read new ones by themselves)
                    └──▶ CertificateSigningRequests of agents, each for the node that the API server says it runs on

An agent's certificate names its node, and a node may only speak for itself. So the name is taken from what the API
server knows about the requester's token (KEP-4193), never from the request.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from services.common.authority import Authority, Pair
from services.common.errors import Invalid
from services.common.kube.resources import SIGNING_REQUESTS, Resource
from services.operator.writes import Write

AUTHORITY = "ciliate-ca"
SIGNER = "ciliate.io/agent"
NODE_NAME = "authentication.kubernetes.io/node-name"
RENEW_SHARE = 3
"""A certificate is renewed when less than this part of its life (a third) is left."""

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """`roles`: role -> further names of its servers. `make_authority` False: somebody else (cert-manager) keeps the
    authority's Secret and those of the roles, and only agents are served."""

    namespace: str
    roles: Mapping[str, Sequence[str]]
    make_authority: bool = True
    validity: timedelta = timedelta(days=90)
    agent_account: str = "ciliate-agent"

    @property
    def secrets(self) -> Resource:
        """Ours alone: nobody else's Secrets are read."""
        return Resource(
            f"/api/v1/namespaces/{self.namespace}/secrets",
            "Secret",
            "v1",
            label_selector="app.kubernetes.io/part-of=ciliate",
        )


def plan(
    options: Options, secrets: Mapping[str, Document], requests: Iterable[Document], now: datetime
) -> tuple[list[Write], dict[str, str]]:
    """(what to write, what is wrong by object)."""
    kept = secrets.get(AUTHORITY)
    if kept is None:
        if not options.make_authority:
            return [], {AUTHORITY: f"there is no Secret {options.namespace}/{AUTHORITY} yet"}
        _, pair = Authority.new()
        # The rest follows when this one is there: two operators cannot make two authorities.
        return [_secret(options, AUTHORITY, pair, pair.certificate, None)], {}
    try:
        authority = Authority(_pair(kept))
    except Invalid as error:
        return [], {AUTHORITY: f"Secret {options.namespace}/{AUTHORITY}: {error}"}
    writes: list[Write] = []
    if options.make_authority:
        for role, hosts in options.roles.items():
            name = f"ciliate-{role}-tls"
            if not _good(secrets.get(name), authority, role, hosts, now):
                pair = authority.issue(role, "", hosts, options.validity)
                writes.append(_secret(options, name, pair, authority.pem, secrets.get(name)))
    for request in requests:
        writes += answer(request, authority, options)
    return writes, {}


def answer(request: Document, authority: Authority, options: Options) -> list[Write]:
    """What is to be done about one request: deny, approve, sign, or nothing any more."""
    spec, status = request.get("spec") or {}, request.get("status") or {}
    name = request["metadata"]["name"]
    done = {condition.get("type") for condition in status.get("conditions") or ()}
    if spec.get("signerName") != SIGNER or status.get("certificate") or done & {"Denied", "Failed"}:
        return []
    version = {"metadata": {"resourceVersion": request["metadata"].get("resourceVersion")}}
    try:
        node, key = _requester(spec, options), _public_key(spec)
    except Invalid as error:
        return [_judge(name, version, "Denied", "NotAnAgent", str(error))]
    if "Approved" not in done:
        return [_judge(name, version, "Approved", "AgentOfNode", f"an agent on node {node}")]
    # The authority comes along: that is how an agent learns whom to trust.
    chain = authority.sign(key, "agent", node, (), options.validity) + authority.pem
    document = version | {"status": {"certificate": base64.b64encode(chain).decode()}}
    return [Write("patch", SIGNING_REQUESTS, name, document=document, subresource="status")]


def _requester(spec: Document, options: Options) -> str:
    """The node that asks; raises `Invalid`."""
    account = f"system:serviceaccount:{options.namespace}:{options.agent_account}"
    if spec.get("username") != account:
        raise Invalid(f"only {account} may ask, not {spec.get('username')!r}")
    nodes = (spec.get("extra") or {}).get(NODE_NAME) or []
    if len(nodes) != 1 or not nodes[0]:
        raise Invalid(f"the requester's token names no node ({NODE_NAME}): is the API server older than 1.30?")
    return str(nodes[0])


def _public_key(spec: Document) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(str(spec.get("request") or ""), validate=True))
        signed = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, binascii.Error) as error:
        raise Invalid(f"request: no PKCS #10 request in PEM: {error}") from error
    if not signed or not isinstance(key, ec.EllipticCurvePublicKey):
        raise Invalid("request: must be signed with its own key, one of an elliptic curve")
    return key


def _judge(name: str, version: Document, kind: str, reason: str, message: str) -> Write:
    condition = {"type": kind, "status": "True", "reason": reason, "message": message}
    document = {**version, "status": {"conditions": [condition]}}
    return Write("patch", SIGNING_REQUESTS, name, document=document, subresource="approval")


def _pair(secret: Document) -> Pair:
    data = secret.get("data") or {}
    try:
        parts = [base64.b64decode(str(data[key]), validate=True) for key in ("tls.crt", "tls.key")]
    except (KeyError, binascii.Error, ValueError) as error:
        raise Invalid("needs tls.crt and tls.key") from error
    return Pair(*parts)


def _good(secret: Document | None, authority: Authority, role: str, hosts: Sequence[str], now: datetime) -> bool:
    """Whether a role's certificate is ours, says what it should, and lasts for a while."""
    if secret is None:
        return False
    try:
        certificate = x509.load_pem_x509_certificate(_pair(secret).certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (Invalid, ValueError, x509.ExtensionNotFound):
        return False
    begin = certificate.not_valid_before.replace(tzinfo=now.tzinfo)
    end = certificate.not_valid_after.replace(tzinfo=now.tzinfo)
    said = {str(each.value) for each in names}
    return (
        authority.signed(certificate)
        and {f"{role}.ciliate", f"ciliate://{role}/", *hosts} <= said
        and end - now > (end - begin) / RENEW_SHARE
    )


def _secret(options: Options, name: str, pair: Pair, authority: bytes, present: Document | None) -> Write:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": options.namespace,
        "labels": {"app.kubernetes.io/part-of": "ciliate", "app.kubernetes.io/managed-by": "ciliate-operator"},
    }
    content = {"ca.crt": authority, "tls.crt": pair.certificate, "tls.key": pair.key}
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": metadata,
        "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
    }
    if present is None:
        return Write("create", options.secrets, name, document=document)
    metadata["resourceVersion"] = present["metadata"].get("resourceVersion")
    return Write("replace", options.secrets, name, document=document)
