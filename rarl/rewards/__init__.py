"""Answer → named scores → one reward."""
