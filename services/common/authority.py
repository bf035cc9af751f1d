"""A small certificate authority: for the sandbox and for tests. Real clusters bring their own (Helm, cert-manager).

Certificates say what a process is: DNS name `<role>.ciliate` (what clients verify) and URI
`ciliate://<role>/<node>` (what servers authorise by). Agents and relays also have the names by which Hubble's own
relay, client and UI know theirs.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.tls import TlsFiles

_STOCK_NAMES = {"agent": ["*.default.hubble-grpc.cilium.io"], "relay": ["*.hubble-relay.cilium.io"]}
VALIDITY = datetime.timedelta(days=365)


def make_authority(directory: Path) -> Path:
    """Create `ca.crt` and `ca.key` in `directory`; an authority that is there already is kept. Returns `ca.crt`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate_path, key_path = directory / "ca.crt", directory / "ca.key"
    if certificate_path.exists() and key_path.exists():
        return certificate_path
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ciliate")])
    builder = _builder(name, name, key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    _write(key_path, _key_bytes(key))
    _write(certificate_path, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return certificate_path


def issue(directory: Path, role: str, node: str = "", hosts: Sequence[str] = ()) -> TlsFiles:
    """Issue a certificate for `role` (and `node`) from the authority in `directory`; `hosts` are further names."""
    authority = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [
        x509.DNSName(f"{role}.ciliate"),
        x509.UniformResourceIdentifier(f"ciliate://{role}/{node}"),
    ]
    for host in (*hosts, *_STOCK_NAMES.get(role, ())):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}/{node}" if node else role)])
    certificate = (
        _builder(subject, authority.subject, key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    stem = f"{role}-{node}" if node else role
    _write(directory / f"{stem}.key", _key_bytes(key))
    _write(directory / f"{stem}.crt", certificate.public_bytes(serialization.Encoding.PEM))
    return TlsFiles(str(directory / "ca.crt"), str(directory / f"{stem}.crt"), str(directory / f"{stem}.key"))


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALIDITY)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    """Atomic, readable by the owner alone: a reader sees the old file or the new one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)
