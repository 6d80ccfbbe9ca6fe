"""Everything is killed at random while many call; then their history is checked.

``python -m tests.chaos --minutes 5 --seed 1``
"""
