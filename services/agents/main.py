"""`python -m services.agents.main [api|worker|all]`."""

from libs.common import process
from libs.common.settings import load
from services.agents.settings import Settings
from services.agents.wiring import build


def main() -> None:
    process.main(build, lambda: load(Settings), service="agents")


if __name__ == "__main__":
    main()
