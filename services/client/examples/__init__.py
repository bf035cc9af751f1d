"""Small programs that use the clients; each runs as `python -m services.client.examples.NAME --help`."""
