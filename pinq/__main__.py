"""``python -m pinq`` is ``pinq``."""

from pinq.cli.main import main

if __name__ == "__main__":
    main()
