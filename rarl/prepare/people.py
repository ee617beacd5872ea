"""Whose images they are. Patients and studies are kept as salted hashes: equal ones stay equal, so
that splits and intervals can go by them, and nobody without the salt can tell which they are. The
salt stays on this machine, and in no output."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from rarl.errors import UserError

SALT_BYTES = 32
DIGITS = 16  # of the hash, in hexadecimal
HASHED = ("patient", "study")
# Words in the name of a column whose values may name a patient, and words that make it harmless.
NAMING = {"patient", "subject", "mrn", "pid", "accession", "study", "name", "birth", "dob", "ssn"}
HARMLESS = {"age", "sex", "gender", "position", "orientation", "weight", "size", "type", "count"}
# Split at capitals, digits and marks: PatientID, patient_id, patient-id.
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# What a name that ends in "name" is harmless of, as in view_name.
OF_THINGS = {"view", "organ", "model", "scanner", "class", "modality", "protocol", "disease"}
# The same in a name without marks or capitals, as in patientid; an inpatient is nobody's name.
STEMS = re.compile(
    r"(?<!in)(?<!out)patient|patient(?:id|no|nr|num|name)|subject(?:id|no|nr|num|name|key)|accession"
    r"|^mrn(?:id|no|nr|num|$)|mrn$|medicalrecord|study(?:id|uid|instance|no$|nr|num|date)"
    r"|(?:last|first|given|family|middle|maiden|full|person|physician|doctor)name|surname|forename"
    r"|birth(?:date|day|time|year)|(?:date|day|year)ofbirth|socialsecurity"
)
OF_HARMLESS = re.compile(rf"s?(?:{'|'.join(sorted(HARMLESS))}|of|at|in|years?|kg|cm|group)+")
AGES = re.compile(r"(?:patient|subject)s?age|age(?:of|at|in)?(?:patient|years?|scan|study)")
NOT_OF_DATES = re.compile(r"(?:up|candi|man|vali|accommo|consoli)date")
DATE = re.compile(
    r"(?:\d{4}-\d\d?-\d\d?|\d{4}/\d\d?/\d\d?|\d\d?\.\d\d?\.\d{4}|\d\d?/\d\d?/\d{4})"
    r"(?:[T ]+\d\d?:\d\d.*)?"
)
OLDEST = 89  # years; older people are few enough to be known by their age


def salt_file() -> Path:
    """Returns where the salt is: RARL_SALT_FILE, or a file in the user's own configuration."""
    given = os.environ.get("RARL_SALT_FILE")
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(given).expanduser() if given else home / "rarl" / "salt"


@cache
def read_salt(path: Path) -> bytes:
    """Returns the salt, which is made where there is none. Raises UserError."""
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            make_salt(path)
        salt = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: the salt for patients' hashes cannot be made or read ({error.strerror}); "
            "name another place with RARL_SALT_FILE"
        ) from None
    if len(salt) < SALT_BYTES:
        raise UserError(f"{path}: holds no salt of {SALT_BYTES} bytes; delete it, or name another")
    return salt


def make_salt(path: Path) -> None:
    """Makes a salt which nobody sees half-written, unless another process is the first."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".salt-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SALT_BYTES))
        with suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()


def hashed(kind: str, value: str) -> str:
    """Returns what stands for a patient or study: HMAC-SHA256 of kind and value, cut."""
    text = f"{kind}\n{value.strip().casefold()}".encode()
    return hmac.new(read_salt(salt_file()), text, hashlib.sha256).hexdigest()[:DIGITS]


def without_names(texts: Mapping[str, str]) -> dict[str, str]:
    """Returns an example's texts with hashes in place of the patient and the study."""
    return {name: hashed(name, value) if name in HASHED else value for name, value in texts.items()}


@cache
def words_of(column: str) -> frozenset[str]:
    """Returns the words in a column's name."""
    return frozenset(word.lower() for word in WORDS.findall(column))


def plain(column: str) -> str:
    """Returns a column's name as its small letters alone."""
    return "".join(letter for letter in column.lower() if letter.isalpha())


@cache
def may_name(column: str) -> bool:
    """Tells whether a column's values may name a patient, by its name."""
    words, name = words_of(column), plain(column)
    if words & HARMLESS or (words & NAMING == {"name"} and words & OF_THINGS):
        return False
    rest = STEMS.sub("", name)
    return bool(words & NAMING) or (rest != name and not OF_HARMLESS.fullmatch(rest))


def is_date(column: str, text: str) -> bool:
    """Tells whether a text is a date. Eight digits, as DICOM writes it, are one where the column's
    name says so."""
    parts = [int(part) for part in re.findall(r"\d+", text)[:3]]
    if DATE.fullmatch(text):
        return is_day(parts) or is_day(parts[::-1]) or is_day([parts[2], *parts[:2]])
    said = "date" in NOT_OF_DATES.sub("", plain(column))
    if not said or not re.fullmatch(r"\d{8}", text):
        return False
    return is_day([int(text[:4]), int(text[4:6]), int(text[6:])])


def is_day(parts: list[int]) -> bool:
    """Tells whether year, month and day are a day of a calendar since 1850."""
    year, month, day = parts
    return 1850 <= year <= 2199 and 1 <= month <= 12 and 1 <= day <= 31


def banded(column: str, value: str | None) -> str | None:
    """Returns a value of a further column, with one band for all ages above OLDEST."""
    if value is None or not ("age" in words_of(column) or AGES.search(plain(column))):
        return value
    number = re.match(r"0*(\d{1,3})(?:\.\d+)?\s*(?:[Yy]|$)", value)
    return f"{OLDEST + 1}+" if number and int(number[1]) > OLDEST else value
