"""Reading a reply: its tags, its words, the findings that it names, and whether its answer is
right."""
