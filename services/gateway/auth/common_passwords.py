"""Passwords that are guessed first. Pure.

Lists of leaked passwords are mostly a few words in a few disguises: another case, digits for letters, a year or an
exclamation mark behind. So the words are kept and the disguises undone, instead of keeping ten thousand lines.
"""

from typing import Final

MIN_LENGTH_OF_A_WORD: Final = 4
_LETTERS: Final = str.maketrans("013457@$!", "oieastasi")
_ROWS: Final = (
    *("0123456789", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "yxcvbnm", "azertyuiop"),
    *("1q2w3e4r5t6y7u8i9o0p", "1qaz2wsx3edc4rfv", "qazwsxedcrfvtgb", "zaq12wsxcde34rfv"),
)
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz"
_WORDS: Final = frozenset(
    """
    abc access admin administrator amanda andrew angel arsenal ashley asdf banana baseball basketball batman blink
    buster butterfly charlie cheese chelsea chocolate computer cookie daniel default demo diamond dragon eminem family
    flower football freedom friends george ginger guest hannah harley hello heslo hockey hottie hunter iloveyou
    iloveu internet jennifer jessica jordan joshua justin killer letmein liverpool login lovely loveme lovers love
    maggie martin master matrix matthew michael michelle monkey mustang mynoob naruto nicole ninja nothing orange
    pass passwd passwort password pepper pokemon princess private purple qazwsx qwer qwert qwerty qwertz azerty
    ranger robert root samantha samsung secret security shadow soccer spiderman starwars startrek summer autumn
    winter spring sunshine superman superstar temp tequiero test testing thomas tigger trustno trustnoone user
    venture companion venturecompanion welcome whatever zaq changeme changeit
    """.split()  # noqa: SIM905 - a list of so many words reads better so
)


def is_common(password: str) -> bool:
    """Whether it is a word of the list in disguise, a run of keys or letters, or little said often."""
    plain = password.casefold().strip()
    return _is_repeated(plain) or _is_run(plain) or _is_word(plain)


def _is_word(plain: str) -> bool:
    """The word alone, or with digits and signs before or behind; with digits for letters, or as it is."""
    bare = plain.strip("0123456789!?.,;:-_*+#$&%@ ")
    whole = plain.translate(_LETTERS).strip("!?.,;:-_*+#&% ")
    if len(bare) > 2 and _is_run(bare):  # noqa: PLR2004 - three letters in a row
        return True
    candidates = {bare, bare.translate(_LETTERS), whole, whole.strip("aeiost")}
    return any(len(it) >= MIN_LENGTH_OF_A_WORD and _is_listed(it) for it in candidates) or bare in _WORDS


def _is_listed(word: str) -> bool:
    """One of the words, or one of them twice."""
    half = len(word) // 2
    return word in _WORDS or (word[:half] == word[half:] and word[:half] in _WORDS)


def _is_run(plain: str) -> bool:
    """Neighbouring keys, digits or letters, in either direction, once round or again from the start."""
    for row in (*_ROWS, _ALPHABET):
        for way in (row, row[::-1]):
            if plain in way * (len(plain) // len(way) + 2):
                return True
    return False


def _is_repeated(plain: str) -> bool:
    """Up to four characters over and over."""
    return any(plain == (plain[:size] * len(plain))[: len(plain)] for size in range(1, 5))
