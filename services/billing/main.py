"""`python -m services.billing.main [api|worker|all]`."""

from libs.common import process
from libs.common.settings import load
from services.billing.settings import Settings
from services.billing.wiring import build


def main() -> None:
    process.main(build, lambda: load(Settings), service="billing")


if __name__ == "__main__":
    main()
