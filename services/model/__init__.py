"""The vocabulary every process shares: labels, identities, addresses, Kubernetes objects, verdicts.

Pure data: nothing here performs I/O, logs, reads a clock or starts a task.
"""
