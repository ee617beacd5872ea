"""The page for people: files alone, so that it keeps no state and can do nothing that the API does
not allow."""
