"""The page on which a clinician accepts, edits or rejects rationales. It needs no Ray."""
