"""Entry point of `python -m devkit.stripe`."""

from devkit.stripe.main import main

if __name__ == "__main__":
    main()
