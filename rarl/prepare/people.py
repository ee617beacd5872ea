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


def may_name(column: str) -> bool:
    """Tells whether a column's values may name a patient, by its name."""
    words = words_of(column)
    return bool(words & NAMING) and not words & HARMLESS


def banded(column: str, value: str | None) -> str | None:
    """Returns a value of a further column, with one band for all ages above OLDEST."""
    if value is None or "age" not in words_of(column):
        return value
    number = re.match(r"0*(\d{1,3})(?:\.\d+)?\s*(?:[Yy]|$)", value)
    return f"{OLDEST + 1}+" if number and int(number[1]) > OLDEST else value
