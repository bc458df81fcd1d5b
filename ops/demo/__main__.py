"""`python -m ops.demo`: walk through the product on the running stack; non-zero as soon as a step does not hold."""

import sys

from ops.demo.journey import travel
from ops.failure import Failure
from ops.stack.stack import Stack


def main() -> int:
    try:
        environment = Stack().environment()
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return travel(environment)


if __name__ == "__main__":
    sys.exit(main())
