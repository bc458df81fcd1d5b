"""Entry point of `python -m devkit.mailbox`."""

from devkit.mailbox.main import main

if __name__ == "__main__":
    main()
