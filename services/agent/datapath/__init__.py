"""The kernel side of the agent: compile and load programs, write maps, attach hooks, collect conntrack.

Only `bcc_backend` (in the loader child) imports bcc; everything else works on pins through bpf(2).
"""
