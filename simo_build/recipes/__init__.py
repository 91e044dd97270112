"""The recipes that ship; each is found by its bare name."""
