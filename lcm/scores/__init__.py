"""Scores of texts that need no model of ours."""

__all__: list[str] = []
