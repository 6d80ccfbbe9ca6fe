"""The neighbours, one file each; none is imported unless asked for."""
