"""Plumbing every process shares: configuration, logging, TLS, gRPC service runner, metrics, retry, errors."""
