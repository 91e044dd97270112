"""Measure what one shared encoder with many heads gains over one model per task."""
