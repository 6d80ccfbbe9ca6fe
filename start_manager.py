"""Start a manager: ``python start_manager.py --data-dir var --objects shop``."""

import os
import signal
import sys

if __name__ == "__main__":
    # Ctrl-C while the modules load, which takes most of the start, is told by nobody.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from state_server.service import main

    # Modules named by --objects are looked for where the command was typed.
    sys.path.insert(0, os.getcwd())
    sys.exit(main(sys.argv[1:]))
