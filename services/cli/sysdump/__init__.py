"""`ciliate sysdump`: one archive with what a maintainer needs to understand a cluster, without its secrets.

sources: servers.py (gRPC) · machine.py (nodes' commands and files) · objects.py (Kubernetes)
  ▼ each a Collector: a name, a file, pieces of text as they come
collector.py: bounded in time and size, failures noted ──▶ redact.py ──▶ tar.gz with index.json
"""
