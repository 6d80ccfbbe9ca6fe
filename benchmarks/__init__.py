"""Measurements: what one call costs, and how many calls one manager carries."""
