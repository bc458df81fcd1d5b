"""`python -m services.metering.main [api|worker|all]`."""

from libs.common import process
from libs.common.settings import load
from services.metering.settings import Settings
from services.metering.wiring import build


def main() -> None:
    process.main(build, lambda: load(Settings), service="metering")


if __name__ == "__main__":
    main()
