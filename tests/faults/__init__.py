"""Faults made on purpose: a shim below SQLite, and hooks inside the manager."""
