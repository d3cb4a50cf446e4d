"""From a request to events: models in memory, leases on them, answers."""
