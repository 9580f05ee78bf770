"""Training a policy: which method samples and minimises what, the one loop, and the measurement of what comes out."""
