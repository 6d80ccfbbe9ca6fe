"""Start the web half: ``python start_web.py --app app:create_app``."""

import sys

from web.__main__ import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "start_web.py"))
