"""The tests: rooms without sockets first, then real processes."""
