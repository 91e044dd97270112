"""Export of a user's own encoder and heads, without experts and without merging."""
