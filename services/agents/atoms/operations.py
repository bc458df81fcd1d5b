"""Writes on prompt atoms: saving one is one transaction, and safe to repeat."""

from libs.common.database import Connection
from services.agents.atoms import queries
from services.agents.atoms.domain import AtomText, CuratedAtom, is_new_version


async def save_atom(conn: Connection, text: AtomText, *, changed_by: str) -> CuratedAtom:
    """Make the atom, or the next version of it. The same again changes nothing but who said so last.

    A new version begins without verdicts; the one before stays on record with its own.
    """
    if text.is_default:
        await queries.clear_default(conn, text.category, but=text.key)
    before = await queries.lock_atom(conn, text.key)
    if before is None and await queries.insert_atom(conn, text, changed_by=changed_by):
        return await _saved(conn, text.key)
    before = before or await _saved(conn, text.key)
    is_new = is_new_version(before.text, text)
    if is_new:
        await queries.keep_version(conn, text.key)
    await queries.update_atom(conn, text, is_new_version=is_new, changed_by=changed_by)
    return await _saved(conn, text.key)


async def _saved(conn: Connection, key: str) -> CuratedAtom:
    atom = await queries.lock_atom(conn, key)
    if atom is None:
        raise RuntimeError("an atom vanished; nobody deletes them")
    return atom
