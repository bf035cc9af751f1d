"""`ciliate-agent preflight`: would the agent work on this node? Found out by trying, never by version numbers.

    node.py       memory, kernel settings, ports            (read)
    conflicts.py  other networks, kube-proxy, leftovers      (read)
    probe.py      a child in namespaces of its own           (tried there)
      kernel.py     maps, programs, helpers, verifier limits
      network.py    veth, tc, XDP, VXLAN, socket hooks, bpffs: with the agent's own code

Nothing is left behind, also when it is killed: what is made belongs to the child's namespaces or descriptors.
"""
