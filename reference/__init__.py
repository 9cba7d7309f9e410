"""The reference pages of the site, made from the code when the site is built: `reference.pages.write` does it."""
