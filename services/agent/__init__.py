"""The node agent: sources -> calc (pure) -> datapath -> kernel, and events back up as flows."""
