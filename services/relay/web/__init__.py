"""The relay's page: who talks to whom, what is refused and why, live and in the past. JSON under `/api/v1`."""
