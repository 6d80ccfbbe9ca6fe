"""Five places for one counter, a file for each: what ``/demo`` runs, and shows.

Each file has ``next_number(run)``, and a docstring whose first line is its title.
"""
