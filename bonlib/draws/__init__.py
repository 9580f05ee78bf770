"""Responses drawn and scored, and kept."""
