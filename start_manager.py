"""Start a manager: ``python start_manager.py --data-dir var --objects shop``."""

import sys

from state_server.service import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
