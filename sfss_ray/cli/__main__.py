"""`python -m sfss_ray.cli`, the same as `sfss-ray`."""

import sys

from sfss_ray.cli.command_line import main

if __name__ == "__main__":
    sys.exit(main())
