"""The CNI plugin: standard library only, one short process per call, all work is the agent's."""
