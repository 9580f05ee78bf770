"""How the bundled models and data are made."""
