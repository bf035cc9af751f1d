"""The identity service: one number per label set across the cluster, and the table of who owns which address.

Truth is in etcd; every replica mirrors it in memory, answers reads from there and fans changes out to agents.
"""
