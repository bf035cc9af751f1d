"""Generated protobuf and gRPC stubs, and nothing else: `./dev proto` writes them from `proto/`."""
