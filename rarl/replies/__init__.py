"""What can be read in a reply: its tags, words, findings and tricks, and if its answer is right."""
