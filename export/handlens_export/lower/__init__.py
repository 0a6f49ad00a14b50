"""From the network to a backend's programs: a file a backend, found by name."""
