"""A small certificate authority: for clusters whose operator keeps it, for the sandbox and for tests.

Certificates say what a process is: DNS name `<role>.ciliate` (what clients verify) and URI
`ciliate://<role>/<node>` (what servers authorise by). Agents and relays also have the names by which Hubble's own
relay, client and UI know theirs. RFC 5280.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.common.errors import Invalid
from services.common.tls import TlsFiles

_STOCK_NAMES = {"agent": ["*.default.hubble-grpc.cilium.io"], "relay": ["*.hubble-relay.cilium.io"]}
VALIDITY = datetime.timedelta(days=365)
AUTHORITY_VALIDITY = datetime.timedelta(days=3650)
CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate (chain) and its private key, PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates of roles. Nothing here touches a file."""

    def __init__(self, pair: Pair) -> None:
        """Raises `Invalid` for what is no authority's certificate and key."""
        try:
            self._certificate = x509.load_pem_x509_certificate(pair.certificate)
            key = serialization.load_pem_private_key(pair.key, password=None)
        except (ValueError, TypeError) as error:
            raise Invalid(f"authority: no certificate and key in PEM: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Invalid("authority: its key must be one of an elliptic curve")
        public = self._certificate.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey) or public.public_numbers() != _numbers(key):
            raise Invalid("authority: the key is not the certificate's")
        self._key, self.pem = key, pair.certificate

    @classmethod
    def new(cls) -> tuple[Self, Pair]:
        """One that nobody knows yet, and what to keep of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ciliate")])
        builder = _builder(name, name, key.public_key(), AUTHORITY_VALIDITY).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        pair = Pair(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), key_pem(key))
        return cls(pair), pair

    def issue(
        self, role: str, node: str = "", hosts: Sequence[str] = (), validity: datetime.timedelta = VALIDITY
    ) -> Pair:
        """A new key with a certificate for `role` (and `node`); `hosts` are further names and addresses."""
        key = new_key()
        return Pair(self.sign(key.public_key(), role, node, hosts, validity), key_pem(key))

    def sign(
        self,
        key: ec.EllipticCurvePublicKey,
        role: str,
        node: str = "",
        hosts: Sequence[str] = (),
        validity: datetime.timedelta = VALIDITY,
    ) -> bytes:
        """A certificate for somebody's own key, PEM. Names come from the arguments alone."""
        names: list[x509.GeneralName] = [
            x509.DNSName(f"{role}.ciliate"),
            x509.UniformResourceIdentifier(f"ciliate://{role}/{node}"),
        ]
        for host in (*hosts, *_STOCK_NAMES.get(role, ())):
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (f"{role}/{node}" if node else role)[:64])])
        builder = (
            _builder(subject, self._certificate.subject, key, validity)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def signed(self, certificate: x509.Certificate) -> bool:
        """Whether this authority signed it."""
        hashed = certificate.signature_hash_algorithm
        if certificate.issuer != self._certificate.subject or hashed is None:
            return False
        try:
            self._key.public_key().verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashed))
        except InvalidSignature:
            return False
        return True


def make_authority(directory: Path) -> Path:
    """Create `ca.crt` and `ca.key` in `directory`; an authority that is there already is kept. Returns `ca.crt`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate_path, key_path = directory / "ca.crt", directory / "ca.key"
    if not (certificate_path.exists() and key_path.exists()):
        _, pair = Authority.new()
        write_private(key_path, pair.key)
        write_private(certificate_path, pair.certificate)
    return certificate_path


def issue(directory: Path, role: str, node: str = "", hosts: Sequence[str] = ()) -> TlsFiles:
    """Issue a certificate for `role` (and `node`) from the authority in `directory`; `hosts` are further names."""
    authority = Authority(Pair((directory / "ca.crt").read_bytes(), (directory / "ca.key").read_bytes()))
    pair = authority.issue(role, node, hosts)
    stem = f"{role}-{node}" if node else role
    write_private(directory / f"{stem}.key", pair.key)
    write_private(directory / f"{stem}.crt", pair.certificate)
    return TlsFiles(str(directory / "ca.crt"), str(directory / f"{stem}.crt"), str(directory / f"{stem}.key"))


def _numbers(key: ec.EllipticCurvePrivateKey) -> ec.EllipticCurvePublicNumbers:
    return key.public_key().public_numbers()


def new_key() -> ec.EllipticCurvePrivateKey:
    """P-256: what everything in the field verifies quickly."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as it is kept."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> None:
    """Atomic, readable by the owner alone: a reader sees the old file or the new one."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
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
