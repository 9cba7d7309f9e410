"""Who belongs to which segment: the language of rules, what they know of a user, and their past."""
