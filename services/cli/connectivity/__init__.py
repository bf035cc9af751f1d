"""`ciliate connectivity test`: does a cluster do what Ciliate promises? Asked with real packets, feature by feature.

cases (pure: objects to apply, requests to make, what should come of them)
  ▼
runner ── Cluster (cluster.py): apply, exec, look up ── a sandbox (in_sandbox.py) or Kubernetes (in_kubernetes.py)
  │  └── relay: was it seen, with the right verdict and rule? (seen.py)
  ▼
report (pure): table, JUnit
"""
