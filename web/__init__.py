"""The web half: an application, worker processes, and the parent that keeps them.

``app`` makes the Flask application, and ``demo`` its page that shows why there is one,
with five ``variants``; one of them asks a ``stock_process``. ``server`` is waitress
with an end that fails no request. ``worker`` is one process that serves. ``children``,
``keeper``, ``pool`` and ``supervisor`` are the parent, which never imports the
application. ``log`` is what all of them write, ``terminal`` whose Ctrl-C they hear.
"""
