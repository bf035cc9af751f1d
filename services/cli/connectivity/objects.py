"""The objects that cases are about: clients, servers and Services of one lane, and short ways to write policies. Pure.

A lane is a namespace with pods of its own, so that several cases run at once and no policy meets another case's pods.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.cli.connectivity.cluster import OWNER_LABEL, Document

HTTP, ALT, UDP, TLS = 8080, 8081, 5300, 8443
TLS_NAMES = ("allowed.test", "other.test")
IMAGE = "nicolaka/netshoot"
CLIENTS = ("client", "stranger")
SERVERS = ("near", "far")
"""`near` is on the clients' node, `far` on another one."""
ECHO = Path(__file__).with_name("echo_server.py")


def namespace(name: str) -> Document:
    """A lane's, marked as ours."""
    labels = {OWNER_LABEL: "true", "lane": name}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def certificate() -> str:
    """A self-signed certificate for `TLS_NAMES`, and its key, in one PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ciliate connectivity test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(text) for text in TLS_NAMES]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form, raw = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(form, raw, serialization.NoEncryption())
    return (made.public_bytes(form) + secret).decode()


def pods(lane: str, near: str, far: str, pem: str, image: str = IMAGE) -> list[Document]:
    """Two clients and a server on the node `near`, another server on `far` (none where that is "")."""
    found = [_pod(lane, name, near, {"kind": "client", "name": name}, image, ["sleep", "infinity"]) for name in CLIENTS]
    for name, node in zip(SERVERS, (near, far), strict=True):
        if not node:
            continue
        command = ["python3", "-c", ECHO.read_text(encoding="utf-8"), name, f"{HTTP},{ALT}", str(UDP)]
        found.append(_pod(lane, name, node, {"app": "echo", "name": name}, image, command, pem))
    return found


def _pod(lane: str, name: str, node: str, labels: Document, image: str, command: list[str], pem: str = "") -> Document:
    ports = [("http", HTTP, "TCP"), ("alt", ALT, "TCP"), ("tls", TLS, "TCP"), ("echo", UDP, "UDP")] if pem else []
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        "command": command,
        "env": [{"name": "TLS_PEM", "value": pem}] if pem else [],
        "ports": [{"name": n, "containerPort": number, "protocol": protocol} for n, number, protocol in ports],
    }
    if pem:
        container["readinessProbe"] = {"tcpSocket": {"port": ALT}, "periodSeconds": 1}
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container]}
    metadata = {"name": name, "namespace": lane, "labels": {"lane": lane, **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def service(lane: str, name: str, selector: Document | None = None, **spec: Any) -> Document:
    """A Service of the servers, on ports 80 (HTTP), 81 and, by UDP, 5300."""
    ports = [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "alt", "port": 81, "targetPort": ALT},
        {"name": "echo", "port": UDP, "targetPort": UDP, "protocol": "UDP"},
    ]
    whole = {"selector": selector or {"app": "echo"}, "ports": ports, "ipFamilyPolicy": "PreferDualStack", **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": lane}, "spec": whole}


def services(lane: str) -> list[Document]:
    """One of every kind."""
    return [
        service(lane, "echo", type="LoadBalancer"),
        service(lane, "echo-local", {"name": "near"}, type="NodePort", externalTrafficPolicy="Local"),
        service(lane, "echo-headless", clusterIP="None"),
        service(lane, "echo-sticky", sessionAffinity="ClientIP"),
        service(lane, "echo-client", {"name": "near"}),
        service(lane, "echo-nobody", {"app": "nobody"}),
    ]


def policy(lane: str, name: str, subject: Document, **spec: Any) -> Document:
    """A CiliumNetworkPolicy; `subject`: labels of the pods that it is about."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": lane},
        "spec": {"endpointSelector": {"matchLabels": subject}, **spec},
    }


def cluster_policy(lane: str, name: str, subject: Document, **spec: Any) -> Document:
    """A CiliumClusterwideNetworkPolicy about pods of one lane only."""
    labels = {"k8s:io.kubernetes.pod.namespace": lane, **subject}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": f"{lane}-{name}", "labels": {OWNER_LABEL: "true"}},
        "spec": {"endpointSelector": {"matchLabels": labels}, **spec},
    }


def network_policy(lane: str, name: str, subject: Document, **spec: Any) -> Document:
    """A Kubernetes NetworkPolicy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": lane},
        "spec": {"podSelector": {"matchLabels": subject}, **spec},
    }


def cluster_wide(kind: str, name: str, spec: Document) -> Document:
    """Another object of the cluster's, marked as ours."""
    metadata = {"name": name, "labels": {OWNER_LABEL: "true"}}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def ports(*numbers: int | str, protocol: str = "TCP", **rules: Any) -> list[Document]:
    """`toPorts` of a rule."""
    return [{"ports": [{"port": str(number), "protocol": protocol} for number in numbers], **rules}]


DNS_RULE: Document = {
    "toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system", "k8s-app": "kube-dns"}}],
    "toPorts": ports(53, protocol="ANY", rules={"dns": [{"matchPattern": "*"}]}),
}
"""Lets a pod ask the cluster's DNS, and the datapath see what it is told."""
