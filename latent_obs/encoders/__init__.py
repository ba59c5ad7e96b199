"""Acting: encoder folders, what a reference resolves to, and how an encoder runs."""
