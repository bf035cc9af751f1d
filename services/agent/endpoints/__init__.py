"""The workload interfaces of this node: addresses, veth pairs, identities, from CNI ADD to DEL and over restarts."""
