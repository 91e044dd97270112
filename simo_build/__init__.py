"""From a recipe to a bundle: experts, merging, re-alignment, export.  Needs torch."""
