"""UserError, the one exception that the command line prints as a single line.

ValueError
└── UserError    something a person can put right: a setting, a file, a corpus
"""


class UserError(ValueError):
    """A mistake that a user can put right. Names the setting, its value, what was expected, and the way out."""
