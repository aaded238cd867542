"""Many processes and machines: jobs, requeueing, sharded weights, shares of work."""
