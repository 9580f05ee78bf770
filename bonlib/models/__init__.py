"""Language models and classifiers: loaded, proved, and run."""
