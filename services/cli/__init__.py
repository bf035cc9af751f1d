"""`ciliate`, the command line: asks agents, the identity service and the relay, and shows the answers."""
