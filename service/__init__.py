"""How the service runs: settings, clients, transport, serving, logs, metrics, health."""
