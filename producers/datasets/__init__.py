"""One adapter a public data set: rows in, canonical events out, every row accounted for."""
