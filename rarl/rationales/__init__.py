"""Explanations of reference answers: asked of a teacher, left out where faulty, and reviewed."""
