"""The neighbours; none is imported unless asked for."""
