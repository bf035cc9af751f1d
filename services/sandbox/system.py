"""What every cluster has before anybody applies anything: two namespaces and the cluster's DNS."""

from __future__ import annotations

from services.sandbox.manifests import Manifest, parse
from services.sandbox.netns import NodeNet, Topology
from services.sandbox.pod_files import CLUSTER_DNS

_SYSTEM = f"""
apiVersion: v1
kind: Namespace
metadata: {{name: default}}
---
apiVersion: v1
kind: Namespace
metadata: {{name: kube-system}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: coredns
  namespace: kube-system
  labels: {{k8s-app: kube-dns}}
spec:
  replicas: 1
  selector: {{matchLabels: {{k8s-app: kube-dns}}}}
  template:
    metadata: {{labels: {{k8s-app: kube-dns}}}}
    spec:
      serviceAccountName: coredns
      containers:
        - name: coredns
          image: registry.k8s.io/coredns/coredns:v1.11.3
          ports:
            - {{name: dns, containerPort: 53, protocol: UDP}}
            - {{name: dns-tcp, containerPort: 53, protocol: TCP}}
---
apiVersion: v1
kind: Service
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{k8s-app: kube-dns}}
spec:
  clusterIP: {CLUSTER_DNS}
  selector: {{k8s-app: kube-dns}}
  ports:
    - {{name: dns, port: 53, protocol: UDP}}
    - {{name: dns-tcp, port: 53, protocol: TCP}}
"""


def _node(node: NodeNet) -> str:
    return f"""
apiVersion: v1
kind: Node
metadata:
  name: {node.name}
  labels: {{kubernetes.io/hostname: {node.name}, kubernetes.io/os: linux}}
spec:
  podCIDRs: ["{node.pod_cidr4}", "{node.pod_cidr6}"]
status:
  addresses:
    - {{type: InternalIP, address: "{node.address4}"}}
    - {{type: InternalIP, address: "{node.address6}"}}
    - {{type: Hostname, address: {node.name}}}
"""


def node_manifests(topology: Topology) -> list[Manifest]:
    """The nodes, as the API server would have them."""
    return parse("---".join(_node(node) for node in topology.nodes), "nodes")


def system_manifests() -> list[Manifest]:
    """The objects, in the order in which they are applied."""
    return parse(_SYSTEM, "system")
