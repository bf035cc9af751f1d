"""Kinds of objects as the API serves them: where they are, and what they are called in rules of access."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API serves it. `optional`: its definition may not be installed, which means there are none."""

    path: str
    kind: str
    api_version: str
    optional: bool = False
    field_selector: str = ""
    label_selector: str = ""
    has_status: bool = False
    """Whether objects have conditions that are written back."""

    def object_path(self, name: str, namespace: str = "") -> str:
        """Where one object is served."""
        root, _, plural = self.path.rpartition("/")
        return f"{root}/namespaces/{namespace}/{plural}/{name}" if namespace else f"{root}/{plural}/{name}"

    def collection_path(self, namespace: str = "") -> str:
        """Where objects are created."""
        root, _, plural = self.path.rpartition("/")
        return f"{root}/namespaces/{namespace}/{plural}" if namespace else self.path

    @property
    def query(self) -> dict[str, str]:
        """What narrows lists and watches."""
        found = {"fieldSelector": self.field_selector, "labelSelector": self.label_selector}
        return {name: text for name, text in found.items() if text}


PODS = Resource("/api/v1/pods", "Pod", "v1")
NAMESPACES = Resource("/api/v1/namespaces", "Namespace", "v1")
NODES = Resource("/api/v1/nodes", "Node", "v1")
SERVICES = Resource("/api/v1/services", "Service", "v1")
EVENTS = Resource("/api/v1/events", "Event", "v1")
SLICES = Resource("/apis/discovery.k8s.io/v1/endpointslices", "EndpointSlice", "discovery.k8s.io/v1")
LEASES = Resource("/apis/coordination.k8s.io/v1/leases", "Lease", "coordination.k8s.io/v1")
SIGNING_REQUESTS = Resource(
    "/apis/certificates.k8s.io/v1/certificatesigningrequests",
    "CertificateSigningRequest",
    "certificates.k8s.io/v1",
    field_selector="spec.signerName=ciliate.io/agent",
)
DEFINITIONS = Resource(
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "CustomResourceDefinition", "apiextensions.k8s.io/v1"
)
NETWORK_POLICIES = Resource("/apis/networking.k8s.io/v1/networkpolicies", "NetworkPolicy", "networking.k8s.io/v1")
CILIUM_POLICIES = Resource(
    "/apis/cilium.io/v2/ciliumnetworkpolicies", "CiliumNetworkPolicy", "cilium.io/v2", True, has_status=True
)
CILIUM_CLUSTERWIDE_POLICIES = Resource(
    "/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies",
    "CiliumClusterwideNetworkPolicy",
    "cilium.io/v2",
    True,
    has_status=True,
)
EGRESS_GATEWAYS = Resource(
    "/apis/cilium.io/v2/ciliumegressgatewaypolicies", "CiliumEgressGatewayPolicy", "cilium.io/v2", True
)
CIDR_GROUPS = Resource("/apis/cilium.io/v2/ciliumcidrgroups", "CiliumCIDRGroup", "cilium.io/v2", True)
LB_POOLS = Resource("/apis/cilium.io/v2/ciliumloadbalancerippools", "CiliumLoadBalancerIPPool", "cilium.io/v2", True)
POD_POOLS = Resource("/apis/ciliate.io/v1/ciliatepodippools", "CiliatePodIPPool", "ciliate.io/v1", True)
CILIATE_NODES = Resource("/apis/ciliate.io/v1/ciliatenodes", "CiliateNode", "ciliate.io/v1", True)
CILIATE_ENDPOINTS = Resource("/apis/ciliate.io/v1/ciliateendpoints", "CiliateEndpoint", "ciliate.io/v1", True)
CILIATE_ENDPOINT_SLICES = Resource(
    "/apis/ciliate.io/v1/ciliateendpointslices", "CiliateEndpointSlice", "ciliate.io/v1", True
)
