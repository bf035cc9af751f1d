"""The Kubernetes API, for every process that speaks with it: requests, and lists that stay up to date."""
