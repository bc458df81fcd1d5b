"""`python -m services.gateway.main [api|worker|all]`."""

from libs.common import process
from libs.common.settings import load
from services.gateway.settings import Settings
from services.gateway.wiring import build


def main() -> None:
    process.main(build, lambda: load(Settings), service="gateway")


if __name__ == "__main__":
    main()
