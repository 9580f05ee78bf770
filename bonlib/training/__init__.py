"""Training: what a step learns from, the gradients, and the one loop."""
