"""What runs the test suites of other projects against a manager of ours.

The suites are fetched when they are run (``sdists``). Our side of each stands here, in
files that only pytest's child process imports, beside the suite.
"""
