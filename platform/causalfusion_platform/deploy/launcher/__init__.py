"""Ray's cluster launcher: machines of AWS or GCP, or a list of hosts reached by SSH."""
