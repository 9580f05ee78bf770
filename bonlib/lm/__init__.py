"""Language models: loading, sampling, scoring, and keeping what was drawn."""
