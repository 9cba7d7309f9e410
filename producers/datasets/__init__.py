"""One adapter a data set, public or a shop's own: rows in, canonical events out, every row accounted for."""
