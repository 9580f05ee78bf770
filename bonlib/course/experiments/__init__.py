"""The runs behind the notebooks, and the tables of their results."""
