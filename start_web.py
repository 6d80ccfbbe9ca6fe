"""Start the web half: ``python start_web.py --app app:create_app``."""

import signal
import sys

if __name__ == "__main__":
    # Ctrl-C while the modules load, which takes most of the start, is told by nobody.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from web.__main__ import main

    sys.exit(main(sys.argv[1:], "start_web.py"))
