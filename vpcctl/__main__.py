"""``python -m vpcctl`` is ``vpcctl``."""

from vpcctl.cli import main

if __name__ == "__main__":
    main()
