"""Ciliate: identity-aware networking, security and observability for Kubernetes."""

__version__ = "0.1.0"
