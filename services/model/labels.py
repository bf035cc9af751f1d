"""Labels: `source:key=value`, the alphabet that identities and selectors are written in.

Input: Kubernetes metadata and selector keys. Output: frozen label sets with one canonical text form,
which is what makes an identity unique across the cluster (etcd keys are built from it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

SOURCE_K8S = "k8s"
SOURCE_RESERVED = "reserved"
SOURCE_CIDR = "cidr"
SOURCE_CIDR_GROUP = "cidrgroup"
SOURCE_FQDN = "fqdn"
SOURCE_ANY = "any"
SOURCE_UNSPEC = "unspec"

SOURCES = frozenset(
    {
        SOURCE_K8S,
        "container",
        "cni",
        SOURCE_RESERVED,
        SOURCE_CIDR,
        SOURCE_CIDR_GROUP,
        SOURCE_FQDN,
        "node",
        "directory",
        SOURCE_UNSPEC,
        SOURCE_ANY,
    }
)

POD_NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels"
CLUSTER = "io.cilium.k8s.policy.cluster"
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"

MAX_LABEL_LENGTH = 1024
"""Upper bound of one label's text form in bytes; Kubernetes' own limits are well below it."""


class LabelError(ValueError):
    """A label text that cannot be read; the message names the text and what is wrong with it."""


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """One label. `value` is empty for reserved labels (`reserved:world`)."""

    source: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.key}={self.value}" if self.value else f"{self.source}:{self.key}"

    @classmethod
    def parse(cls, text: str, default_source: str = SOURCE_UNSPEC) -> Label:
        """Read `source:key=value`, `key=value`, `$reserved-name`; raises `LabelError`.

        Only a known source before the first ':' counts as a source, and only when that ':' stands before the
        first '=': `app=a:b` has no source. Values may be empty and may contain ':' and '='.
        """
        if not text or len(text.encode()) > MAX_LABEL_LENGTH:
            raise LabelError(f"label {text[:80]!r}: must be 1 to {MAX_LABEL_LENGTH} bytes long")
        # The space is the one white-space character that counts as printable.
        if not text.isprintable() or " " in text:
            raise LabelError(f"label {text[:80]!r}: holds white space or an unprintable character")
        if text.startswith("$"):
            text = f"{SOURCE_RESERVED}:{text[1:]}"
        name, _, value = text.partition("=")
        source, colon, key = name.partition(":")
        if not colon or source not in SOURCES:
            source, key = default_source, name
        if not key:
            raise LabelError(f"label {text!r}: the key is empty; write source:key=value")
        return cls(source, key, value)


class Labels(frozenset[Label]):
    """An immutable label set with a canonical text form.

    Two sets are equal exactly when their canonical forms are.
    """

    __slots__ = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Labels:
        """Read a list of label texts; two different values for one source and key are an error."""
        seen: dict[tuple[str, str], Label] = {}
        for text in texts:
            label = Label.parse(text)
            known = seen.setdefault((label.source, label.key), label)
            if known != label:
                raise LabelError(f"labels {known} and {label} give one key two values; keep one")
        return cls(seen.values())

    def canonical(self) -> str:
        """Sorted label texts, each ended by ';' (';' inside a label is escaped): the identity's key in etcd."""
        return "".join(f"{str(label).replace('%', '%25').replace(';', '%3B')};" for label in sorted(self))

    @classmethod
    def from_canonical(cls, text: str) -> Labels:
        """Inverse of `canonical`; raises `LabelError` where `text` cannot have come from it."""
        parts = text.split(";")
        if parts[-1]:
            raise LabelError(f"canonical labels {text[:80]!r}: must end with ';'")
        return cls.parse(part.replace("%3B", ";").replace("%25", "%") for part in parts[:-1])

    def texts(self) -> tuple[str, ...]:
        """Sorted text forms, as flows and the API show them."""
        return tuple(str(label) for label in sorted(self))

    def value(self, key: str, source: str = SOURCE_K8S) -> str | None:
        """The value of a key, or None where the set has no such label."""
        return next((label.value for label in self if label.key == key and label.source == source), None)


def pod_identity_labels(
    pod_labels: Mapping[str, str],
    namespace: str,
    namespace_labels: Mapping[str, str],
    service_account: str = "default",
    cluster: str = "default",
) -> Labels:
    """The unfiltered label set of a pod (policy-semantics 4.4); apply a `LabelFilter` to get its identity's."""
    found = [Label(SOURCE_K8S, key, value) for key, value in pod_labels.items()]
    found += [Label(SOURCE_K8S, f"{NAMESPACE_LABELS}.{key}", value) for key, value in namespace_labels.items()]
    found.append(Label(SOURCE_K8S, POD_NAMESPACE, namespace))
    found.append(Label(SOURCE_K8S, CLUSTER, cluster))
    if service_account:
        found.append(Label(SOURCE_K8S, SERVICE_ACCOUNT, service_account))
    return Labels(found)
