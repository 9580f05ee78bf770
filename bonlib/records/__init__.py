"""Prompts, responses and scores of anybody's: read, reported on, written for trainers."""
