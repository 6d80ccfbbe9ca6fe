"""Start a manager: ``python start_manager.py --data-dir var --objects shop``."""

import os
import sys

from state_server.service import main

if __name__ == "__main__":
    # Modules named by --objects are looked for where the command was typed.
    sys.path.insert(0, os.getcwd())
    sys.exit(main(sys.argv[1:]))
