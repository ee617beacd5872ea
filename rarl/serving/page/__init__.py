"""The page for people: files alone, which can do nothing that the API does not allow."""
