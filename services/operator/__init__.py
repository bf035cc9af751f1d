"""The operator: chores that the cluster needs done once, whoever does them; one replica acts, the others wait."""
