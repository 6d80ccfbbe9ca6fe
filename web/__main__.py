"""The command ``python -m web``: read the settings, run the supervisor."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

if __name__ == "__main__":
    # Ctrl-C while the modules load, which takes most of the start, is told by nobody.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from state_server import settings
from state_server.errors import ConfigError
from web import log
from web.supervisor import EXIT_FAILED, Supervisor
from web.terminal import alone_in_the_foreground


def main(arguments: Sequence[str], program: str = "python -m web") -> int:
    """Run until a signal ends it and return the exit code."""
    try:
        chosen = settings.from_command_line(
            settings.WebSettings,
            arguments,
            os.environ,
            program=program,
            description="Serve the web application in several worker processes.",
        )
        log.configure(chosen.log_level)
        for sentence in settings.unknown_variables(os.environ):
            logging.getLogger("state_server.web").warning("%s", sentence)
        with alone_in_the_foreground():
            return Supervisor(chosen).run()
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
