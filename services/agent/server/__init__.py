"""What others may ask the agent: container runtimes (CNI, a unix socket) and people (introspection, gRPC)."""
