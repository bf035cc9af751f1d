"""The sandbox: a cluster on one machine, for one person. Nodes and pods are network namespaces.

It plays the parts of Kubernetes that Ciliate needs (API server, controllers, kubelet) and runs the real etcd,
identity service, relay, agents and CNI plugin. Nothing in those knows that it is in a sandbox. See DESIGN.md.
"""
