import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from ops.home import Home
from ops.port_blocks import BLOCK, claim_block


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "claims.json"


def homes(tmp_path: Path, count: int) -> list[Home]:
    made = [Home(tmp_path / f"home-{number}") for number in range(count)]
    for home in made:
        home.path.mkdir()
    return made


def test_homes_that_ask_at_the_same_moment_get_blocks_that_do_not_touch(tmp_path: Path, ledger: Path) -> None:
    with ThreadPoolExecutor(16) as crowd:
        given = list(crowd.map(partial(claim_block, ledger=ledger), homes(tmp_path, 100)))
    assert len(set(given)) == 100
    assert all(block % BLOCK == 0 for block in given)


def test_a_home_finds_its_block_again(tmp_path: Path, ledger: Path) -> None:
    first, *others = homes(tmp_path, 20)
    block = claim_block(first, ledger=ledger)
    for other in others:
        claim_block(other, ledger=ledger)
    assert claim_block(first, ledger=ledger) == block


def test_the_block_of_a_home_that_is_gone_is_anybodys(tmp_path: Path, ledger: Path) -> None:
    two = (20000, 20000 + BLOCK)
    first, second, third = homes(tmp_path, 3)
    gone = claim_block(first, ledger=ledger, blocks=two)
    claim_block(second, ledger=ledger, blocks=two)
    shutil.rmtree(first.path)
    assert claim_block(third, ledger=ledger, blocks=two) == gone


def test_with_every_block_claimed_one_is_shared(tmp_path: Path, ledger: Path) -> None:
    first, second = homes(tmp_path, 2)
    assert claim_block(first, ledger=ledger, blocks=(20000,)) == 20000
    assert claim_block(second, ledger=ledger, blocks=(20000,)) == 20000


def test_a_claim_is_never_written_through_a_link(tmp_path: Path, ledger: Path) -> None:
    ledger.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        claim_block(homes(tmp_path, 1)[0], ledger=ledger)
    assert not (tmp_path / "precious").exists()
